"""Split-epoch studies: two networks trained on from one trunk with other data orders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..types import ProgressCallback, StateDict
from .layers import HESSIAN_SAMPLES, layer_connectivity
from .linear import linear_connectivity
from .measures import Rank, rank_correlation
from .networks import Networks
from .predict import NODES
from .problem import Problem


@dataclass(frozen=True)
class Split:
    """Two networks that share a trunk until ``epoch`` (None: they share nothing, not even initial weights).

    ``loss_1`` and ``loss_2`` are the ends' training losses. Values as in ``linear_connectivity`` and ``Prediction``, on
    the training loss where nothing else is said; angle, cosine and radii are seen from the trunk (from the origin where
    there is none).
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
    """Barrier, prediction and place of two ``children`` of the trunk ``base``; ``group`` names the repetition.

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
    ends = linear.lines[0].values["train_loss"]
    place = (linear.base_geometry or linear.geometry)[(0, 1)]
    return Split(
        group=group,
        epoch=epoch,
        loss_1=ends[0],
        loss_2=ends[-1],
        **{name: value for name, value in asdict(barriers["train_loss"]).items() if name != "at"},
        test_barrier=barriers["test_loss"].entezari if "test_loss" in barriers else None,
        test_error_barrier=barriers["test_error"].frankle if "test_error" in barriers else None,
        predicted=layers.whole.midpoint,
        sixteenth=layers.whole.sixteenth,
        curvature_integral=layers.integral.integral,
        integral_barrier=layers.integral.barrier,
        **asdict(place),
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

    Not the mean: where one of two ends has just had a spike of its loss, the midpoint lies far below both.
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
