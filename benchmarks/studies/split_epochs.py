"""Barriers by the epoch at which two trainings part, beside what second derivatives predict.

    python -m benchmarks.studies.split_epochs CASE [--data-dir DIR] [--seeds N ...]

CASE is digits, digits-tanh, digits-plain, digits-stable or lenet5; writes CASE.{json,csv,png,svg} to
runs/studies/split-epochs.
A trunk is trained (``llpf train --checkpoint-epochs``); from each checkpoint two children go on (``--init``) with other
data orders until all have had the same number of epochs. An interrupted command continues when repeated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.studies.study import ROOT, option_parser, parse, save, train, trunk
from llpf_fast.analysis import Networks, Problem
from llpf_fast.analysis.layers import HESSIAN_SAMPLES, layer_connectivity
from llpf_fast.analysis.linear import linear_connectivity
from llpf_fast.analysis.measures import Rank, rank_correlation
from llpf_fast.analysis.predict import NODES
from llpf_fast.cli.output import Progress
from llpf_fast.report.style import COLOURS, DASHES, REMARK, new_figure, plain_number, save_figure
from llpf_fast.types import ProgressCallback, StateDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Case:
    """What is trained, and what our prototype measured there (``expected``)."""

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
    expected: str = ""


CASES = {
    "digits": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.05 momentum 0.9, batch 16",
        splits=(0, 1, 2, 5, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 16},
        expected="split 0/2/10: barrier 0.0296/0.0025/0.0000, 1/16 formula 0.026/0.0015/0.0001, angle 48/52/59 "
        "degrees; independent initialisation: 0.658, predicted 0.10, curvature integral 0.589 (kinks)",
    ),
    "digits-tanh": Case(
        f"{Path(__file__).with_name('study.py')}:TanhMLP",
        "digits",
        "digits, 64-64-64-10 tanh, SGD 0.05 momentum 0.9, batch 16",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 16},
        expected="tanh: the curvature integral is the barrier (0.2861 against 0.2866, independent initialisation)",
    ),
    "digits-plain": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.1 without momentum, batch 16",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.1, "momentum": 0.0, "batch_size": 16},
        expected="the prototype's settings (lr 0.1, batch 16), without momentum",
    ),
    "digits-stable": Case(
        "mlp",
        "digits",
        "digits, 64-64-64-10 ReLU, SGD 0.05 momentum 0.9, batch 64",
        splits=(0, 2, 10),
        epochs=20,
        training={"lr": 0.05, "momentum": 0.9, "batch_size": 64},
        expected="lr 0.05, batch 64: no barrier at any split",
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
        expected="small networks are stable from initialisation, as reported for MNIST: barriers near 0",
    ),
}


@dataclass(frozen=True)
class Split:
    """Two networks that share a trunk until ``epoch`` (None: they share nothing, not even initial weights).

    ``loss_1`` and ``loss_2`` are the training losses of the two. Other values are those of ``linear_connectivity`` and
    ``Prediction``, on the training loss where not named otherwise; angle, cosine and radii are relative to the trunk
    (to the origin where there is none).
    """

    group: str
    epoch: int | None
    loss_1: float
    loss_2: float
    frankle: float
    entezari: float
    midpoint: float
    test_barrier: float | None
    test_error_barrier: float | None
    predicted: float
    sixteenth: float
    curvature_integral: float
    integral_barrier: float
    distance: float
    angle: float
    cosine: float
    radius_1: float
    radius_2: float
    layer_rank: float | None


def compare_children(
    problem: Problem,
    children: Networks,
    base: StateDict | None,
    *,
    group: str,
    epoch: int | None,
    points: int = 25,
    hessian_samples: int = HESSIAN_SAMPLES,
    nodes: int = NODES,
    progress: ProgressCallback | None = None,
) -> Split:
    """Barrier, prediction and position of two ``children`` of the trunk ``base``; ``group`` names the repetition.

    Raises:
        LLPFError: not two networks, or of another architecture than ``base``.
    """
    linear = linear_connectivity(problem, children, points=points, base=base, progress=progress)
    layers = layer_connectivity(
        problem, children, orders=("alone",), hessian_samples=hessian_samples, nodes=nodes, progress=progress
    )
    assert layers.whole is not None
    assert layers.integral is not None
    barriers = linear.lines[0].barriers
    losses = linear.lines[0].values["train_loss"]
    geometry = (linear.base_geometry or linear.geometry)[(0, 1)]
    return Split(
        group=group,
        epoch=epoch,
        loss_1=losses[0],
        loss_2=losses[-1],
        **{name: value for name, value in asdict(barriers["train_loss"]).items() if name != "at"},
        test_barrier=barriers["test_loss"].entezari if "test_loss" in barriers else None,
        test_error_barrier=barriers["test_error"].frankle if "test_error" in barriers else None,
        predicted=layers.whole.midpoint,
        sixteenth=layers.whole.sixteenth,
        curvature_integral=layers.integral.integral,
        integral_barrier=layers.integral.barrier,
        **asdict(geometry),
        layer_rank=layers.ranks()["alone"].rho,
    )


def prediction_ranks(splits: Sequence[Split]) -> dict[str, Rank]:
    """Spearman's correlation, over all splits, of the midpoint's barrier with each of its estimates."""
    measured = [split.midpoint for split in splits]
    estimates = {
        "predicted": [split.predicted for split in splits],
        "sixteenth": [split.sixteenth for split in splits],
        "curvature_integral": [split.curvature_integral for split in splits],
        "distance": [split.distance for split in splits],
    }
    return {name: rank_correlation(values, measured) for name, values in estimates.items()}


def medians(splits: Iterable[Split]) -> list[dict[str, Any]]:
    """Median over groups for each epoch, in order; the pairs that share nothing last.

    Not the mean: a spike in the loss of one of the two puts the midpoint far below it.
    """
    splits = list(splits)
    epochs = sorted({split.epoch for split in splits}, key=lambda epoch: (epoch is None, epoch))
    table = []
    for epoch in epochs:
        chosen = [asdict(split) for split in splits if split.epoch == epoch]
        record: dict[str, Any] = {"epoch": epoch, "groups": len(chosen)}
        for name in chosen[0]:
            values = [row[name] for row in chosen]
            if name not in ("group", "epoch") and all(isinstance(value, float) for value in values):
                record[name] = median(values)
        table.append(record)
    return table


def study(case: Case, problem: Problem, seed: int, work: Path, data_dir: str | None) -> list[Split]:
    """All splits of one trunk."""
    options = {"data_dir": data_dir, **case.training}
    checkpoints = trunk(work, case.model, case.data, case.splits, seed=seed, **options)
    splits = []
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
            splits.append(split)

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
    return splits


def agreement(splits: list[Split]) -> dict[str, bool]:
    """Whether the medians have the expected signs and order."""
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
    """The main numbers: medians over trunks, at the line's midpoint."""
    table = medians(splits)
    shared = [row for row in table if row["epoch"] is not None]
    numbers: dict[str, float | None] = {}
    for row in (shared[0], shared[-1], *[row for row in table if row["epoch"] is None]):
        where = "nothing_shared" if row["epoch"] is None else f"split_at_epoch_{row['epoch']}"
        numbers |= {f"barrier_{where}": row["midpoint"], f"second_order_{where}": row["predicted"]}
    numbers["rank_correlation_of_second_order_and_barrier"] = prediction_ranks(splits)["predicted"].rho
    numbers["rank_correlation_of_curvature_integral_and_barrier"] = prediction_ranks(splits)["curvature_integral"].rho
    return numbers


_BARRIERS = {
    "midpoint": "measured, midpoint",
    "predicted": "second order",
    "sixteenth": "second order, curvature alone",
    "curvature_integral": "integral of curvature",
}
_GEOMETRY = {"angle": "angle at the trunk (degrees)", "distance": "distance between the two"}


def draw_split(splits: Sequence[Split], folder: str | os.PathLike[str], stem: str, title: str = "") -> Path:
    """Barrier with its estimates, angle and distance, against the epoch of the split: medians as lines, groups as dots.

    Pairs that share nothing are last, under "none". The CSV holds every pair. Returns the PNG's path.
    """
    table = medians(splits)
    labels = ["none" if row["epoch"] is None else str(row["epoch"]) for row in table]
    with new_figure(13, 4.2) as figure:
        panels = figure.subplots(1, 3, width_ratios=[1.7, 1, 1])
        where = {row["epoch"]: i for i, row in enumerate(table)}
        for number, (name, label) in enumerate(_BARRIERS.items()):
            _series(panels[0], splits, where, [row[name] for row in table], name, number, label)
        # Barriers span decades, and estimates may be below 0.
        highest = max(max(abs(row["midpoint"]) for row in table), 1e-6)
        panels[0].set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(highest) - 2))
        panels[0].yaxis.set_major_formatter(plain_number)
        panels[0].axhline(0, color=REMARK, linewidth=0.8)
        panels[0].set_ylabel("barrier of the training loss")
        panels[0].legend(fontsize=8, frameon=False)
        for axes, (name, label) in zip(panels[1:], _GEOMETRY.items(), strict=True):
            shared = [row for row in table if row["epoch"] is not None or name != "angle"]
            _series(axes, splits, where, [row[name] for row in shared], name, 0, None, len(shared))
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        for axes in panels:
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.4, len(labels) - 0.6)
            axes.set_xlabel("epochs trained together")
        if title:
            figure.suptitle(title, fontsize=11)
        rows = [asdict(split) for split in splits]
        names = list(rows[0])
        return save_figure(figure, folder, stem, names, [[row[name] for name in names] for row in rows])


def _series(
    axes: Axes,
    splits: Sequence[Split],
    where: dict[int | None, int],
    line: list[float],
    name: str,
    number: int,
    label: str | None,
    shown: int | None = None,
) -> None:
    axes.plot(range(len(line)), line, linestyle=DASHES[number], color=COLOURS[number], label=label)
    dots = [(where[split.epoch], getattr(split, name)) for split in splits]
    dots = [(x, y) for x, y in dots if shown is None or x < shown]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=COLOURS[number], markersize=3.5, alpha=0.6)


def main() -> None:
    parser = option_parser(__doc__, "split-epochs", [*CASES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parse(parser)
    case = CASES[args.case]
    problem = Problem.from_names(
        case.model, case.data, data_dir=args.data_dir, samples=case.samples, cache=args.work / "cache"
    )
    splits = [split for seed in args.seeds for split in study(case, problem, seed, args.work, args.data_dir)]
    about = {
        **problem.about(),
        "model": case.model.removeprefix(f"{ROOT}/"),
        "command": f"python -m benchmarks.studies.split_epochs {args.case}",
        "training": case.training,
        "epochs": case.epochs,
        "trunk_seeds": args.seeds,
        "hessian_samples": case.hessian_samples or "all",
        "expected": case.expected,
    }
    numbers = {
        **headline(splits),
        "medians": medians(splits),
        "rank_correlation_over_all_pairs": {name: asdict(rank) for name, rank in prediction_ranks(splits).items()},
        "agrees_with_expectation": agreement(splits),
    }
    print(save(args.out, args.case, numbers=numbers, about=about))
    print(draw_split(splits, args.out, args.case, case.title))


if __name__ == "__main__":
    main()
