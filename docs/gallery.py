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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
RESULTS = ROOT / "benchmarks" / "results"

#: Scalars of a result that its caption shows at most; the JSON file holds all.
_MOST_NUMBERS = 8
_MOST_ROWS = 20


@dataclass(frozen=True)
class Topic:
    """``read`` says what one sees; ``command`` is the module of benchmarks/analysis that made it.

    ``numbers`` are the values of a result's JSON file that its caption shows, label to dotted name; all scalars at its
    top where there are none. ``table`` is a dotted name of a list of records, and those of their keys that are shown.
    """

    heading: str
    read: str
    command: str
    numbers: dict[str, str] = field(default_factory=dict)
    table: tuple[str, tuple[str, ...]] | None = None


TOPICS = {
    "pca": Topic(
        "Where paths go",
        "The waypoints of several paths along the principal components of all of them together, the whole network and"
        " layer by layer, with loss as colour. Distances in such a plane are lower bounds of the true ones. Then the "
        "first of the paths as a film, and its layers tick by tick.",
        "pca",
        {
            "waypoints": "waypoints",
            "parameters": "parameters",
            "share of two components": "share_of_two_components",
            "peak memory of the analysis (MB)": "peak_megabytes_of_the_analysis",
            "waypoints (GB)": "waypoints_gigabytes",
            "seconds": "seconds",
        },
    ),
    "plane": Topic(
        "The plane through three networks, and the classic misreading",
        "Contours are the loss *in the plane*. A path leaves the plane, so what lies under its drawn line is the loss"
        " of its shadow. The dots are coloured by the waypoints' own loss, on the same scale; both are plotted on the"
        " right, with the distance between them below.",
        "plane",
        {
            "largest distance of the path from the plane": "path.largest_distance_from_plane",
            "highest true loss of the path": "path.highest_true_loss",
            "highest loss of its shadow": "path.highest_loss_of_projections",
            "grid points without finite loss": "grid_points_without_finite_loss",
            "training samples": "samples",
        },
    ),
    "split-epochs": Topic(
        "Barriers by split epoch",
        "Two trainings that share their first epochs and then go on with different mini-batches: barrier on the "
        "straight line between them, beside the second-order prediction, against the epoch at which they part.",
        "split_epochs",
        {
            "barrier, nothing shared": "barrier_nothing_shared",
            "second-order prediction, nothing shared": "second_order_nothing_shared",
            "rank correlation of prediction and barrier": "rank_correlation_of_second_order_and_barrier",
            "rank correlation of curvature integral and barrier": (
                "rank_correlation_of_curvature_integral_and_barrier"
            ),
        },
        ("medians", ("epoch", "groups", "midpoint", "entezari", "frankle", "predicted", "curvature_integral", "angle")),
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
        {
            "connected": "certificate.connected",
            "threshold": "certificate.threshold",
            "highest loss on the triangles": "certificate.max_loss",
            "points evaluated": "certificate.points_evaluated",
            "lowest test accuracy": "certificate.min_test_accuracy",
            "straight line 1 - 2, highest loss": "without_connector.line seed 1 - seed 2",
            "straight line 1 - 3, highest loss": "without_connector.line seed 1 - seed 3",
            "straight line 2 - 3, highest loss": "without_connector.line seed 2 - seed 3",
            "centroid of the three": "without_connector.centroid",
        },
    ),
    "widths": Topic(
        "How wide low-loss regions are",
        "Radial width around optima against learning rate, batch size, weight decay and network width: absolute, and "
        "relative to the norm of the parameters.",
        "widths",
        table=("agreement", ("axis", "measure", "expected_sign", "rho", "agrees")),
    ),
    "subspace": Topic(
        "Training in random subspaces",
        "How often a random subspace of dimension d holds a low-loss point; for the wedge model beside its closed "
        "form.",
        "subspace",
        table=("rows", ("dimension", "law", "root_mean_square", "reached", "reached_by_law")),
    ),
    "curves": Topic(
        "LLPF beside Bezier, polychain and AutoNEB",
        "The same two networks, joined by each method: highest training loss, test accuracy, gradient steps and "
        "seconds.",
        "curves",
        table=(
            "rows",
            (
                *("method", "budget", "peak_train_loss", "higher_end_loss", "connected"),
                *("min_test_accuracy", "gradient_steps", "seconds"),
            ),
        ),
    ),
    "sharpness": Topic(
        "Sharpness and generalisation along a path",
        "Top Hessian eigenvalue, trace and SAM's sharpness at waypoints; accuracy of the weights' average and of the "
        "ensemble of waypoints against the ends.",
        "sharpness",
        table=("ensembles", ("run", "what", "networks", "test_loss", "test_accuracy")),
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
        lines += [*_caption(file, topic), ""]
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


def _caption(file: Path, topic: Topic) -> list[str]:
    content = _read(file)
    numbers = content.get("numbers", {})
    others = sorted(file.parent.glob(f"{file.stem}*.csv"))
    files = ", ".join(f"[{part.name}]({_link(part)})" for part in (file, *others))
    lines = [f"**{file.stem}** {_source(content)} Numbers: {files}.".replace("  ", " ")]
    expected = (content.get("about") or {}).get("expected")
    if isinstance(expected, str):
        lines += ["", f"Expected beforehand: {expected}."]
    chosen = topic.numbers or ({} if topic.table else {name.replace("_", " "): name for name in numbers})
    rows = [(label, text) for label, name in chosen.items() if (text := _scalar(_lookup(numbers, name))) is not None]
    if rows:
        lines += ["", "| number | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows[: None if topic.numbers else _MOST_NUMBERS]]
    return [*lines, *_table(numbers, topic)]


def _table(numbers: Mapping[str, Any], topic: Topic) -> list[str]:
    records = _lookup(numbers, topic.table[0]) if topic.table else None
    if topic.table is None or not isinstance(records, list) or not records:
        return []
    columns = [name for name in topic.table[1] if any(name in record for record in records)]
    lines = ["", f"| {' | '.join(name.replace('_', ' ') for name in columns)} |", f"|{'---|' * len(columns)}"]
    for record in records[:_MOST_ROWS]:
        cells = [record.get(name) for name in columns]
        lines.append(f"| {' | '.join(cell if isinstance(cell, str) else _scalar(cell) or '–' for cell in cells)} |")
    if len(records) > _MOST_ROWS:
        lines += ["", f"({len(records) - _MOST_ROWS} more rows in the JSON file.)"]
    return lines


def _lookup(numbers: Any, name: str) -> Any:
    """The value under a dotted name; None where there is none."""
    for part in name.split("."):
        if not isinstance(numbers, Mapping) or part not in numbers:
            return None
        numbers = numbers[part]
    return numbers


def _scalar(value: Any) -> str | None:
    if not isinstance(value, (bool, int, float)):
        return None
    return ("yes" if value else "no") if isinstance(value, bool) else _number(value)


def _source(content: Mapping[str, Any]) -> str:
    """Model, data, machine and commit, where the file says."""
    about = content.get("about") or {}
    environment = content.get("environment") or {}
    subject = about if about.get("model") else about.get("problem") or {}
    what = " on ".join(subject[key] for key in ("model", "data") if isinstance(subject.get(key), str))
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
