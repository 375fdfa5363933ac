"""Radial width against learning rate, batch size, weight decay and (digits) network width.

    python -m benchmarks.studies.widths digits
    python -m benchmarks.studies.widths lenet5 --data-dir DIR

writes CASE.{json,csv,png,svg} to benchmarks/results/analysis/widths. LeNet5 trains on a fixed stratified subset of
10,000 MNIST images for 4 epochs; trained networks are kept, so an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.studies.record_path import commit
from benchmarks.studies.trained import RESULTS, WORK
from llpf_fast.analysis import Problem, write_result
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
    "algorithm-facts.md C.2 (reported: higher learning rate, smaller batch, stronger L2, wider network all raise the "
    "width) and C.3 (own digits prototype: weight decay increases only the relative width)"
)


def agreement(sweep: WidthSweep) -> list[dict[str, Any]]:
    """A row an expectation: the sign expected, the correlation found, whether they agree."""
    found = {(row["axis"], row["measure"]): row["rho"] for row in sweep.trends()}
    rows = []
    for axis in sweep.axes:
        for measure, sign in EXPECTED[axis].items():
            rho = found[axis, measure]
            agrees = None if rho is None else rho * sign > 0
            rows.append({"axis": axis, "measure": measure, "expected_sign": sign, "rho": rho, "agrees": agrees})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS / "widths")
    args = parser.parse_args()
    torch.set_num_threads(1)
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
        "commit": commit(),
        "law": sweep.law,
        "base": vars(sweep.base),
        "seeds": list(args.seeds or case["seeds"]),
        "matched_loss": sweep.matched_loss,
        "expected": EXPECTED,
        "expected_from": SOURCE,
    }
    compared = agreement(sweep)
    write_result(args.out, args.case, numbers={"axes": sweep.axes, "agreement": compared, **tables}, about=about)
    draw_sweep(sweep, args.out, args.case)
    for row in compared:
        print(f"{args.case}: {row}")


if __name__ == "__main__":
    main()
