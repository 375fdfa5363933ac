"""Radial width against learning rate, batch size, weight decay and (digits) network width.

    python -m benchmarks.studies.widths digits
    python -m benchmarks.studies.widths lenet5 --data-dir DIR

writes CASE.{json,csv,png,svg} to runs/studies/widths. LeNet5 trains on a fixed stratified subset of
10,000 MNIST images for 4 epochs; trained networks are cached, so an interrupted sweep continues.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.studies.study import option_parser, parse, save
from llpf_fast.analysis import Problem
from llpf_fast.analysis.width_sweep import Training, WidthSweep, width_sweep
from llpf_fast.analysis.widths import WidthSettings
from llpf_fast.batches import stratified_subset
from llpf_fast.cli.output import Progress
from llpf_fast.data import load_dataset
from llpf_fast.models import build_model
from llpf_fast.report.widths import draw_sweep

CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "names": ("mlp", "digits"),
        "subset": 0,
        "samples": 0,
        "base": Training(lr=0.05, batch_size=64, epochs=30),
        "axes": {
            "lr": [0.005, 0.02, 0.05, 0.1],
            "batch_size": [16, 64, 256],
            "weight_decay": [0.0, 1e-3, 5e-3],
            "width": [16, 32, 64, 128],
        },
        "seeds": (0, 1, 2),
        "matched_loss": 0.05,
        "directions": 6,
    },
    "lenet5": {
        "names": ("lenet5", "mnist"),
        "subset": 10_000,
        "samples": 1000,
        "base": Training(lr=0.01, batch_size=64, epochs=4),
        "axes": {
            "lr": [0.005, 0.01, 0.02, 0.05],
            "batch_size": [16, 64, 256],
            "weight_decay": [0.0, 1e-3, 5e-3],
        },
        "seeds": (0, 1),
        "matched_loss": 0.15,
        "directions": 6,
    },
}
#: The sign expected of Spearman's correlation of axis and width.
EXPECTED: dict[str, dict[str, int]] = {
    "lr": {"final_width": 1},
    "batch_size": {"final_width": -1},
    "weight_decay": {"final_width": -1, "final_relative": 1},
    "width": {"final_width": 1},
}
SOURCE = (
    "reported: higher learning rate, smaller batch, stronger L2 and wider network all raise the width; in a prototype "
    "on digits, weight decay raised only the relative width"
)


def agreement(sweep: WidthSweep) -> list[dict[str, Any]]:
    """A row for each expectation: expected sign, measured correlation, whether they agree."""
    correlations = {(row["axis"], row["measure"]): row["rho"] for row in sweep.trends()}
    rows = []
    for axis in sweep.axes:
        for measure, sign in EXPECTED[axis].items():
            rho = correlations[axis, measure]
            agrees = None if rho is None else rho * sign > 0
            rows.append({"axis": axis, "measure": measure, "expected_sign": sign, "rho": rho, "agrees": agrees})
    return rows


def main() -> None:
    parser = option_parser(__doc__, "widths", CASES)
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parse(parser)
    case = CASES[args.case]
    model, data = case["names"]
    loaded = load_dataset(data, args.data_dir)
    chosen = stratified_subset(loaded.train_targets, case["subset"])
    train = (loaded.train_inputs[chosen], loaded.train_targets[chosen])

    def build(width: int | None) -> nn.Module:
        return build_model(model, **({} if width is None else {"hidden": width}))

    def problem_of(width: int | None) -> Problem:
        names = {"model": model, "data": data}
        return Problem(
            *(build(width), None),
            train=train,
            test=loaded.test,
            samples=case["samples"],
            cache=args.work / "cache",
            names=names,
        )

    settings = WidthSettings(threshold=0.5, directions=case["directions"])
    with Progress("network") as progress:
        sweep = width_sweep(
            problem_of,
            build,
            case["axes"],
            case["base"],
            settings,
            seeds=args.seeds or case["seeds"],
            matched_loss=case["matched_loss"],
            progress=progress.update,
        )
    tables = {"networks": [cell.row() for cell in sweep.cells], "summary": sweep.summary(), "trends": sweep.trends()}
    about = {
        **problem_of(None).about(),
        "law": sweep.law,
        "base": vars(sweep.base),
        "seeds": list(args.seeds or case["seeds"]),
        "matched_loss": sweep.matched_loss,
        "expected": EXPECTED,
        "expected_from": SOURCE,
    }
    compared = agreement(sweep)
    save(args.out, args.case, numbers={"axes": sweep.axes, "agreement": compared, **tables}, about=about)
    draw_sweep(sweep, args.out, args.case)
    for row in compared:
        print(f"{args.case}: {row}")


if __name__ == "__main__":
    main()
