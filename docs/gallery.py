"""docs/gallery.md from the numbers and pictures committed under benchmarks/results.

python docs/gallery.py          # prints the page
python docs/gallery.py --write  # writes it

Every section is a folder: of certified paths, or of one analysis. A folder without a description here stops the page,
so that none is left out; a description without its folder is passed over until there is one.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
RESULTS = ROOT / "benchmarks" / "results"

#: Scalars of a result that its caption shows at most; the JSON file holds all.
_MOST_NUMBERS = 8


@dataclass(frozen=True)
class Topic:
    """``read`` says what one sees; ``command`` is the module of benchmarks/analysis that made it."""

    heading: str
    read: str
    command: str


TOPICS = {
    "pca": Topic(
        "Where paths go",
        "The waypoints of several paths along the principal components of all of them together, the whole network and"
        " layer by layer, with loss as colour. Distances in such a plane are lower bounds of the true ones. Then the "
        "first of the paths as a film, and its layers tick by tick.",
        "pca",
    ),
    "plane": Topic(
        "The plane through three networks, and the classic misreading",
        "Contours are the loss *in the plane*. A path leaves the plane, so what lies under its drawn line is the loss"
        " of its shadow. The dots are coloured by the waypoints' own loss, on the same scale; both are plotted on the"
        " right, with the distance between them below.",
        "plane",
    ),
    "split-epochs": Topic(
        "Barriers by split epoch",
        "Two trainings that share their first epochs and then go on with different mini-batches: barrier on the "
        "straight line between them, beside the second-order prediction, against the epoch at which they part.",
        "split_epochs",
    ),
    "layers": Topic(
        "Layer-wise connectivity",
        "What happens when one layer alone, or more and more layers, move to the other network's values, in both "
        "directions, beside the prediction from gradient and curvature at the ends.",
        "layer_heatmap",
    ),
    "connector": Topic(
        "A connector of three optima",
        "Six triangles around three trained networks, certified at points inside the triangles and not only on their "
        "edges.",
        "connector",
    ),
    "widths": Topic(
        "How wide low-loss regions are",
        "Radial width around optima against learning rate, batch size, weight decay and network width: absolute, and "
        "relative to the norm of the parameters.",
        "widths",
    ),
    "subspace": Topic(
        "Training in random subspaces",
        "How often a random subspace of dimension d holds a low-loss point; for the wedge model beside its closed "
        "form.",
        "subspace",
    ),
    "curves": Topic(
        "LLPF beside Bezier, polychain and AutoNEB",
        "The same two networks, joined by each method: highest training loss, test accuracy, gradient steps and "
        "seconds.",
        "curves",
    ),
    "sharpness": Topic(
        "Sharpness and generalisation along a path",
        "Top Hessian eigenvalue, trace and SAM's sharpness at waypoints; accuracy of the weights' average and of the "
        "ensemble of waypoints against the ends.",
        "sharpness",
    ),
}


def page() -> str:
    """The whole page."""
    lines = [
        "# Gallery",
        "",
        "<!-- written by docs/gallery.py from benchmarks/results; a test holds it current -->",
        "",
        "Every picture is drawn from numbers that lie beside it as CSV, SVG and JSON, made by the command named with "
        "it. `llpf report RUN` puts the same figures, interactive, into one file for runs of your own.",
        "",
    ]
    lines += _paths()
    folder = RESULTS / "analysis"
    found = sorted(part.name for part in folder.iterdir() if part.is_dir()) if folder.is_dir() else []
    missing = [name for name in found if name not in TOPICS]
    if missing:
        raise SystemExit(
            f"docs/gallery.py does not describe benchmarks/results/analysis/{missing[0]}: add it to TOPICS"
        )
    for name, topic in TOPICS.items():
        if name in found:
            lines += _topic(folder / name, topic)
    return "\n".join(lines).rstrip() + "\n"


def _paths() -> list[str]:
    lines = [
        "## Certified paths",
        "",
        "Training loss along the path and along the straight line, threshold dotted; accuracy below.",
        "",
    ]
    for file in sorted((RESULTS / "paths").glob("*.json")):
        picture = file.with_suffix(".png")
        content = _read(file)
        certificate = content.get("certificate")
        if certificate is None or not picture.exists():
            continue
        verdict = "Connected" if certificate["connected"] else "Not connected"
        said = [
            f"{verdict} at {certificate['threshold']:g}",
            f"highest training loss {_number(certificate['max_loss'])}",
            f"{certificate['points_evaluated']:,} points on and between {certificate['waypoints']:,} waypoints",
        ]
        if certificate.get("min_test_accuracy") is not None:
            said.insert(2, f"lowest test accuracy {100 * certificate['min_test_accuracy']:.2f} %")
        lines += [
            f"### {file.stem}",
            "",
            *_picture(picture, file.stem),
            "",
            f"{'; '.join(said)}. {_source(content)}",
            "",
        ]
        lines += [f"    {reason}" for reason in certificate["reasons"]]
        lines += [""] * bool(certificate["reasons"])
    return lines


def _topic(folder: Path, topic: Topic) -> list[str]:
    lines = [f"## {topic.heading}", "", topic.read, "", *_command(topic), ""]
    for picture in sorted([*folder.glob("*.png"), *folder.glob("*.gif")], key=_order):
        if picture.suffix == ".png" and picture.with_suffix(".gif").exists():
            continue  # the film's last frame
        lines += [*_picture(picture, f"{topic.heading}: {picture.stem}"), ""]
    for file in sorted(folder.glob("*.json")):
        lines += [*_caption(file), ""]
    return lines


def _order(picture: Path) -> tuple[str, str]:
    """A case's main picture before those with a suffix; then by name."""
    case = picture.stem.partition("-")[0]
    return case, picture.stem


def _command(topic: Topic) -> list[str]:
    file = ROOT / "benchmarks" / "analysis" / f"{topic.command}.py"
    if not file.exists():
        return []
    usage = [line.strip() for line in (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()]
    commands = [line for line in usage if line.startswith("python -m ")]
    return ["Made by " + ", ".join(f"`{command}`" for command in commands) + "."] if commands else []


def _picture(picture: Path, words: str) -> list[str]:
    return [f"![{words}]({_link(picture)})"]


def _caption(file: Path) -> list[str]:
    content = _read(file)
    rows = list(_scalars(content.get("numbers", {})))[:_MOST_NUMBERS]
    others = sorted(file.parent.glob(f"{file.stem}*.csv"))
    files = ", ".join(f"[{part.name}]({_link(part)})" for part in (file, *others))
    lines = [f"**{file.stem}** {_source(content)} Numbers: {files}.".replace("  ", " ")]
    if rows:
        lines += ["", "| number | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return lines


def _scalars(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in numbers.items():
        if isinstance(value, (bool, int, float)):
            yield name.replace("_", " "), "yes" if value is True else "no" if value is False else _number(value)


def _source(content: Mapping[str, Any]) -> str:
    """Model, data, machine and commit, where the file says."""
    about = content.get("about") or {}
    environment = content.get("environment") or {}
    what = " on ".join(about[key] for key in ("model", "data") if isinstance(about.get(key), str))
    machine = environment.get("machine") or content.get("machine")
    commit = about.get("commit") or content.get("commit")
    said = [what, str(machine or ""), f"torch {environment['torch']}" if environment.get("torch") else ""]
    said.append(f"commit {commit}" if commit else "")
    text = "; ".join(part for part in said if part)
    return f"({text})" if text else ""


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _link(file: Path) -> str:
    return "../" + file.relative_to(ROOT).as_posix()


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
