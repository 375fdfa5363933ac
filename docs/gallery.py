"""docs/gallery.md from the numbers and pictures under benchmarks/results.

python docs/gallery.py          # prints the page
python docs/gallery.py --write  # writes it

The first section shows the certified paths of benchmarks/results/paths, each further one NAME.png and its entry in
numbers.json of benchmarks/results/gallery, which `python -m benchmarks.studies.gallery` takes from the results of the
studies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
RESULTS = ROOT / "benchmarks" / "results"

#: Name of the files -> heading, and what the picture shows.
TOPICS = {
    "pca": (
        "Principal components of two paths",
        "The waypoints of two paths along the first two principal components of both, with the loss as colour. "
        "Distances in this plane are lower bounds of the true ones.",
    ),
    "plane": (
        "The plane through three networks",
        "Contours are the loss *in the plane*. The path leaves the plane: below its drawn line lies the loss of its "
        "projection. The dots have the colour of the waypoints' loss, on the same scale. Both losses are plotted on "
        "the right, with the distance between waypoint and plane below.",
    ),
    "layers": (
        "Layer-wise connectivity",
        "The barrier when one layer alone, or more and more layers, move halfway to the other network, from each of "
        "two networks, beside the second-order prediction.",
    ),
    "connector": (
        "A connector of three optima",
        "Six triangles around three trained networks, certified at points inside the triangles and on their edges.",
    ),
    "widths": (
        "Widths of low-loss regions",
        "The radius of the low-loss region around trained networks against learning rate, batch size, weight decay and "
        "network width: absolute, and relative to the norm of the parameters.",
    ),
    "curves": (
        "LLPF, Bezier curve, polychain and AutoNEB",
        "The same two networks, joined by each method: highest training loss, test accuracy, gradient steps and "
        "seconds.",
    ),
    "sharpness": (
        "Sharpness toward the origin",
        "Largest Hessian eigenvalue, trace, one-step SAM sharpness and test accuracy of the waypoints of two paths "
        "toward the origin. The table compares ensembles and averaged weights of waypoints with the endpoints.",
    ),
}


def page() -> str:
    """The whole page; SystemExit where a result has no description."""
    lines = [
        "# Gallery",
        "",
        "<!-- written by docs/gallery.py from benchmarks/results; a test holds it current -->",
        "",
        "Every command of `llpf analyze` draws such pictures of your runs; `llpf report RUN` puts them, interactive, "
        "into one file.",
        "",
        *_paths(),
    ]
    folder = RESULTS / "gallery"
    names = sorted(file.stem for file in folder.glob("*.png"))
    for name in names:
        if name not in TOPICS:
            raise SystemExit(
                f"docs/gallery.py does not describe benchmarks/results/gallery/{name}.png: add it to TOPICS"
            )
    content = _read(folder / "numbers.json") if names else {}
    for name, (heading, text) in TOPICS.items():
        if name in names:
            lines += [f"## {heading}", "", text, "", *_result(folder / f"{name}.png", heading, content[name])]
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
        facts = [
            f"{'Connected' if certificate['connected'] else 'Not connected'} at {certificate['threshold']:g}",
            f"highest training loss {_number(certificate['max_loss'])}",
            f"{certificate['points_evaluated']:,} points on and between {certificate['waypoints']:,} waypoints",
        ]
        if certificate.get("min_test_accuracy") is not None:
            facts.insert(2, f"lowest test accuracy {100 * certificate['min_test_accuracy']:.2f} %")
        lines += [
            f"### {file.stem}",
            "",
            _picture(picture, file.stem),
            "",
            f"{'; '.join(facts)}. {_source(content)}",
            "",
        ]
        lines += [f"    {reason}" for reason in certificate["reasons"]]
        lines += [""] * bool(certificate["reasons"])
    return lines


def _result(picture: Path, heading: str, content: dict[str, Any]) -> list[str]:
    lines = [_picture(picture, heading), "", f"Made by `{content['command']}` {_source(content)}.", ""]
    if content["numbers"]:
        lines += _table(["number", "value"], [[label, value] for label, value in content["numbers"].items()])
    if "rows" in content:
        lines += _table([name.replace("_", " ") for name in content["columns"]], content["rows"])
    return lines


def _table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return [*lines, ""]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    return value if isinstance(value, str) else _number(value)


def _picture(picture: Path, text: str) -> str:
    return f"![{text}](../{picture.relative_to(ROOT).as_posix()})"


def _source(content: dict[str, Any]) -> str:
    """Model, data, machine, torch and commit, where the file names them."""
    subject = " on ".join(content[key] for key in ("model", "data") if key in content)
    torch = f"torch {content['torch']}" if "torch" in content else ""
    commit = f"commit {content['commit']}" if "commit" in content else ""
    text = "; ".join(part for part in (subject, content.get("machine", ""), torch, commit) if part)
    return f"({text})" if text else ""


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
