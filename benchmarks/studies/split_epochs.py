"""Barriers by the epoch at which two trainings part, beside what second derivatives predict.

    python -m benchmarks.studies.split_epochs CASE [--data-dir DIR] [--seeds N ...]

CASE is digits, digits-tanh, digits-plain, digits-stable or lenet5; writes CASE.{json,csv,png,svg} to
benchmarks/results/analysis/split-epochs.
A trunk is trained (``llpf train --checkpoint-epochs``); from each checkpoint two children go on (``--init``) with other
data orders until all have had the same number of epochs. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.record_path import ROOT, commit
from benchmarks.studies.trained import RESULTS, WORK, train, trunk
from llpf_fast.analysis import Problem, write_result
from llpf_fast.analysis.split import Split, compare_children, medians, prediction_ranks
from llpf_fast.cli.output import Progress
from llpf_fast.report.draw_split import draw_split


@dataclass(frozen=True)
class Case:
    """What is trained, and what ``algorithm-facts.md`` (B.3, our own prototype) found there."""

    model: str
    data: str
    title: str
    splits: tuple[int, ...]
    epochs: int
    training: dict[str, Any]
    samples: int = 0
    hessian_samples: int = 0
    nodes: int = 8
    points: int = 25
    facts: str = ""


CASES = {
    "digits": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.05 momentum 0.9, batch 16",
        splits=(0, 1, 2, 5, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 16},
        facts="split 0/2/10: barrier 0.0296/0.0025/0.0000, 1/16 formula 0.026/0.0015/0.0001, angle 48/52/59 degrees; "
        "independent initialisation: 0.658, predicted 0.10, curvature integral 0.589 (kinks)",
    ),
    "digits-tanh": Case(
        f"{Path(__file__).with_name('tanh_mlp.py')}:TanhMLP",
        "digits",
        "digits, 64-64-64-10 tanh, SGD 0.05 momentum 0.9, batch 16",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 16},
        facts="tanh: the curvature integral is the barrier (0.2861 against 0.2866, independent initialisation)",
    ),
    "digits-plain": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.1 without momentum, batch 16",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.1, "momentum": 0.0, "batch_size": 16},
        facts="the prototype's settings as its notes give them (lr 0.1, batch 16), read as plain SGD",
    ),
    "digits-stable": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.05 momentum 0.9, batch 64",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 64},
        facts="lr 0.05, batch 64: no barrier at any split",
    ),
    "lenet5": Case(
        "lenet5",
        "mnist",
        "MNIST, LeNet5, SGD 0.01 momentum 0.9, batch 64",
        splits=(0, 1, 3),
        epochs=5,
        training={"lr": 0.01, "momentum": 0.9, "batch_size": 64},
        samples=10_000,
        hessian_samples=500,
        nodes=4,
        points=13,
        facts="small networks are stable from initialisation, as reported for MNIST: barriers near 0",
    ),
}


def study(case: Case, problem: Problem, seed: int, work: Path, data_dir: str | None) -> list[Split]:
    """All splits of one trunk."""
    options = {"data_dir": data_dir, **case.training}
    checkpoints = trunk(work, case.model, case.data, case.splits, seed=seed, **options)
    found = []
    with Progress("step") as progress:

        def compare(children: list[Path], base: Any, epoch: int | None) -> None:
            progress.begin(f"seed {seed}, split {epoch}")
            networks = problem.networks(children, names=["a", "b"])
            split = compare_children(
                *(problem, networks, base),
                group=str(seed),
                epoch=epoch,
                hessian_samples=case.hessian_samples,
                nodes=case.nodes,
                points=case.points,
                progress=progress.update,
            )
            found.append(split)

        for epoch, checkpoint in checkpoints.items():
            children = [
                train(
                    *(work, case.model, case.data),
                    seed=1000 * seed + child,
                    init=checkpoint,
                    epochs=case.epochs - epoch,
                    **options,
                )
                for child in (1, 2)
            ]
            compare(children, problem.networks([checkpoint], fewest=1)[0], epoch)
        children = [
            train(work, case.model, case.data, seed=1000 * seed + 500 + i, epochs=case.epochs, **options)
            for i in (1, 2)
        ]
        compare(children, None, None)
    return found


def agreement(splits: list[Split]) -> dict[str, bool]:
    """What the facts file expects in sign and order, held against the medians."""
    table = medians(splits)
    shared = [row for row in table if row["epoch"] is not None]
    alone = next(row for row in table if row["epoch"] is None)
    first, last = shared[0], shared[-1]
    return {
        "barrier_falls_from_first_to_last_split": first["midpoint"] > last["midpoint"],
        "prediction_falls_from_first_to_last_split": first["sixteenth"] > last["sixteenth"],
        "angle_at_the_trunk_does_not_fall": last["angle"] >= first["angle"],
        "distance_falls": last["distance"] < first["distance"],
        "independent_initialisation_is_highest": alone["midpoint"] > first["midpoint"],
        "prediction_far_too_low_there": alone["sixteenth"] < alone["midpoint"] / 2,
    }


def headline(splits: list[Split]) -> dict[str, float | None]:
    """The few numbers that a reader wants first: medians over trunks, at the line's midpoint."""
    table = medians(splits)
    shared = [row for row in table if row["epoch"] is not None]
    found: dict[str, float | None] = {}
    for row in (shared[0], shared[-1], *[row for row in table if row["epoch"] is None]):
        where = "nothing_shared" if row["epoch"] is None else f"split_at_epoch_{row['epoch']}"
        found |= {f"barrier_{where}": row["midpoint"], f"second_order_{where}": row["predicted"]}
    found["rank_correlation_of_second_order_and_barrier"] = prediction_ranks(splits)["predicted"].rho
    found["rank_correlation_of_curvature_integral_and_barrier"] = prediction_ranks(splits)["curvature_integral"].rho
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES])
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS / "split-epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[args.case]
    problem = Problem.from_names(
        case.model, case.data, data_dir=args.data_dir, samples=case.samples, cache=args.work / "cache"
    )
    splits = [split for seed in args.seeds for split in study(case, problem, seed, args.work, args.data_dir)]
    about = {
        **problem.about(),
        "model": case.model.removeprefix(f"{ROOT}/"),
        "command": f"python -m benchmarks.studies.split_epochs {args.case}",
        "commit": commit(),
        "training": case.training,
        "epochs": case.epochs,
        "trunk_seeds": args.seeds,
        "hessian_samples": case.hessian_samples or "all",
        "expected": case.facts,
    }
    numbers = {
        **headline(splits),
        "medians": medians(splits),
        "rank_correlation_over_all_pairs": {name: asdict(rank) for name, rank in prediction_ranks(splits).items()},
        "agrees_with_expectation": agreement(splits),
    }
    print(write_result(args.out, args.case, numbers=numbers, about=about))
    print(draw_split(splits, args.out, args.case, case.title))


if __name__ == "__main__":
    main()
