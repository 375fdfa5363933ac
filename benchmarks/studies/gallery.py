"""Take what docs/gallery.md shows from the studies' results: eight small pictures and their numbers.

    python -m benchmarks.studies.gallery [FOLDER]
    python docs/gallery.py --write

reads FOLDER/TOPIC/STEM.{png,json}, which the studies wrote (runs/studies), and writes NAME.png and the entry NAME of
numbers.json to benchmarks/results/gallery. What FOLDER lacks stays as it was. Everything else that a study writes stays
out of git.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.studies.study import ROOT, WORK, option_parser, save_json, small_picture

GALLERY = ROOT / "benchmarks" / "results" / "gallery"


@dataclass(frozen=True)
class Shown:
    """What the gallery shows of one study.

    Attributes:
        command: of the study, with the arguments that made these results.
        picture: ``TOPIC/STEM`` of the picture.
        result: ``TOPIC/STEM`` of the JSON file.
        numbers: label -> dotted name in the JSON file's ``numbers``.
        table: dotted name of a list of records, and the keys that are shown.
    """

    command: str
    picture: str
    result: str
    numbers: dict[str, str] = field(default_factory=dict)
    table: tuple[str, tuple[str, ...]] | None = None


SHOWN = {
    "pca": Shown(
        "pca lenet5 RUN RUN",
        "pca/lenet5",
        "pca/lenet5",
        {
            "waypoints": "waypoints",
            "parameters": "parameters",
            "share of the variance in two components": "share_of_two_components",
        },
    ),
    "plane": Shown(
        "plane lenet5 RUN",
        "plane/lenet5",
        "plane/lenet5",
        {
            "largest distance of the path from the plane": "path.largest_distance_from_plane",
            "highest loss of the path": "path.highest_true_loss",
            "highest loss of its projection": "path.highest_loss_of_projections",
            "training samples": "samples",
        },
    ),
    "layers": Shown(
        "layer_heatmap lenet5",
        "layers/lenet5-independent",
        "layers/lenet5-independent",
        {
            "barrier of the midpoint": "barrier_of_the_midpoint",
            "its second-order prediction": "second_order",
            "largest barrier of one layer": "largest_barrier_of_one_layer",
            "smallest barrier of one layer": "smallest_barrier_of_one_layer",
            "rank correlation of prediction and barrier, single layers": "rank_correlation_single_layers",
        },
    ),
    "connector": Shown(
        "connector lenet5",
        "connector/lenet5",
        "connector/lenet5",
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
    "widths": Shown(
        "widths digits",
        "widths/digits",
        "widths/digits",
        table=("agreement", ("axis", "measure", "expected_sign", "rho", "agrees")),
    ),
    "curves": Shown(
        "curves lenet5",
        "curves/lenet5",
        "curves/lenet5",
        table=(
            "rows",
            ("method", "budget", "peak_train_loss", "connected", "min_test_accuracy", "gradient_steps", "seconds"),
        ),
    ),
    "sharpness": Shown(
        "sharpness lenet5 m2m=RUN m2o=RUN",
        "sharpness/lenet5-origin",
        "sharpness/lenet5",
        table=("ensembles", ("run", "what", "networks", "test_loss", "test_accuracy")),
    ),
}


def excerpt(shown: Shown, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a result's ``content``: command, source, numbers by label, table."""
    about, environment, numbers = content["about"], content["environment"], content["numbers"]
    subject = about.get("problem", about)
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.studies.{shown.command}",
        **{key: subject[key] for key in ("model", "data")},
        **{key: environment[key] for key in ("machine", "torch")},
        "commit": about["commit"],
        "numbers": {label: look_up(numbers, name) for label, name in shown.numbers.items()},
    }
    if shown.table is not None:
        name, columns = shown.table
        result["columns"] = list(columns)
        result["rows"] = [[record.get(key) for key in columns] for record in look_up(numbers, name)]
    return result


def look_up(numbers: Any, name: str) -> Any:
    """The value under a dotted name; KeyError where there is none."""
    for part in name.split("."):
        numbers = numbers[part]
    return numbers


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=WORK)
    parser.add_argument("--out", type=Path, default=GALLERY)
    args = parser.parse_args()
    file = args.out / "numbers.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, shown in SHOWN.items():
        picture, result = args.folder / f"{shown.picture}.png", args.folder / f"{shown.result}.json"
        if picture.exists() and result.exists():
            small_picture(picture, args.out / f"{name}.png")
            content[name] = excerpt(shown, json.loads(result.read_text(encoding="utf-8")))
            save_json(file, content)
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
