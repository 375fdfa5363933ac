"""Sharpness at waypoints of a run: Hessian eigenvalue and trace, one-step SAM."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batches.fixed_samples import sample_count
from ..errors import LLPFError
from ..path import RunDirectory, Waypoint, state_digest
from ..path.fingerprint import code_digest
from ..path.polyline import distance
from ..types import ProgressCallback
from .hessian import Hessian, sam_one_step, top_eigenvalue, trace
from .problem import Problem
from .vector_loss import VectorLoss


@dataclass(frozen=True)
class SampledWaypoint:
    """A waypoint, the share of the path's length before it, its L2 norm (parameters only) and that of the first."""

    waypoint: Waypoint
    arc: float
    norm: float
    norm_share: float

    def load(self) -> Mapping[str, Tensor]:
        return self.waypoint.load()


def sample_waypoints(folder: str | os.PathLike[str], names: Collection[str], points: int) -> list[SampledWaypoint]:
    """At most ``points`` waypoints of the run in ``folder``, its first and last among them, evenly spaced in length.

    ``names`` are those of the parameters. Reads every waypoint once.

    Raises:
        LLPFError: not a run; no waypoints, or fewer than two; ``points`` below 2.
    """
    if points < 2:
        raise LLPFError(f"at least 2 points of the path are needed, got {points}")
    waypoints = RunDirectory.open(folder).waypoints()
    if len(waypoints) < 2:
        raise LLPFError(f"{folder} has {len(waypoints) or 'no'} waypoints: that is no path yet")
    arcs, norms = [0.0], []
    before: Mapping[str, Tensor] | None = None
    for waypoint in waypoints:
        state = waypoint.load()
        if before is not None:
            arcs.append(arcs[-1] + distance(before, state, names))
        norms.append(_norm(state, names))
        before = state
    total = arcs[-1]
    if not (math.isfinite(total) and total > 0):
        raise LLPFError(f"the path in {folder} has a length of {total}: its waypoints are all alike or not finite")
    wanted = [total * i / (points - 1) for i in range(points)]
    numbers = {min(range(len(arcs)), key=lambda i: (abs(arcs[i] - arc), i)) for arc in wanted}
    return [
        SampledWaypoint(waypoints[i], arcs[i] / total, norms[i], norms[i] / norms[0] if norms[0] else math.nan)
        for i in sorted(numbers | {0, len(waypoints) - 1})
    ]


def _norm(state: Mapping[str, Tensor], names: Collection[str]) -> float:
    return math.sqrt(math.fsum(float(state[name].double().square().sum()) for name in names if name in state))


#: Samples a batch of a product: the double backward stores every activation twice.
_BATCH = 250


@dataclass(frozen=True)
class SharpnessAlong:
    """``rows``: one a waypoint, in order; ``settings``: of the measurements."""

    rows: list[dict[str, Any]]
    settings: dict[str, Any]


def sharpness_along(
    problem: Problem,
    folder: str | os.PathLike[str],
    *,
    points: int = 9,
    rho: float = 0.05,
    probes: int = 16,
    tolerance: float = 1e-3,
    progress: ProgressCallback | None = None,
) -> SharpnessAlong:
    """Top Hessian eigenvalue, Hessian trace and one-step SAM sharpness at waypoints of the run in ``folder``.

    All on ``problem.measured``, in eval mode, in the problem's dtype, with ``problem.usual_statistics`` of BatchNorm
    layers: those of the waypoint, or re-estimated ones. The eigenvalue and the trace
    depend on the scale of the weights (a ReLU network scaled down by c in every layer but the last computes alike and
    is sharper), so both are also given times the squared norm of the parameters.

    Columns: waypoint, tick, arc (share of the path's length), norm (L2 of all parameters) and norm_share (of the
    first's), train_loss (on the samples), test_loss and test_accuracy (whole test set, where there is one) with its
    binomial standard error, top_eigenvalue, trace with trace_standard_error, sam_one_step, and the two scaled ones. A
    point whose loss is not finite has NaN.

    Raises:
        LLPFError: not a run, no path yet; the run is of another architecture; settings that cannot work.
    """
    if probes < 2:
        raise LLPFError(f"the trace needs at least 2 probes for a standard error, got {probes}")
    if not (math.isfinite(rho) and rho > 0):
        raise LLPFError(f"rho must be a positive number, got {rho}")
    names = {name for name, _ in problem.module.named_parameters()}
    chosen = sample_waypoints(folder, names, points)
    settings: dict[str, Any] = {
        "rho": rho,
        "probes": probes,
        "eigenvalue_tolerance": tolerance,
        "samples": sample_count(problem.measured),
    }
    evaluate = None if problem.test is None else problem.evaluator("test")
    labels = _labels(problem)
    rows = []
    for number, each in enumerate(chosen):
        state = each.load()

        def tick(done: int, number: int = number) -> None:
            if progress is not None:
                progress(number, len(chosen), f"waypoint {chosen[number].waypoint.index}  {done} products")

        measured = _measured(problem, state, settings, tick)
        test = None if evaluate is None else evaluate(state)
        rows.append(_row(each, measured, test, labels))
        if progress is not None:
            text = f"top eigenvalue {measured['top_eigenvalue']:.4g}  trace {measured['trace']:.4g}"
            progress(number + 1, len(chosen), text)
    return SharpnessAlong(rows, settings)


def _measured(
    problem: Problem, state: Mapping[str, Tensor], settings: dict[str, Any], tick: Callable[[int], None]
) -> dict[str, float]:
    def compute() -> dict[str, float]:
        network = problem.vector_loss()
        at = state
        if problem.usual_statistics == "reestimated":
            (at,) = problem.reestimated([state])
        network.load_buffers(at)
        samples = problem.fixed(problem.measured, batch_size=_BATCH)
        hessian = Hessian(network, network.pack(at, "the run"), samples, tick)
        loss = hessian.loss()
        if not math.isfinite(loss):
            names = ("top_eigenvalue", "trace", "trace_standard_error", "sam_one_step")
            return {"train_loss": loss, **dict.fromkeys(names, math.nan)}
        estimate = trace(hessian, probes=settings["probes"])
        return {
            "train_loss": loss,
            "top_eigenvalue": top_eigenvalue(hessian, tolerance=settings["eigenvalue_tolerance"]),
            "trace": estimate.mean,
            "trace_standard_error": estimate.standard_error,
            "sam_one_step": sam_one_step(hessian, settings["rho"]),
        }

    key = {
        "what": "sharpness",
        "state": state_digest(state),
        "settings": settings,
        "batch_size": _BATCH,
        "code": code_digest(Hessian, VectorLoss),
    }
    return problem.cached_numbers(key, compute)


def _labels(problem: Problem) -> int:
    """Labels of the test set that count."""
    if problem.test is None:
        return 0
    targets = (targets for _, targets, _ in problem.fixed(problem.test))
    return sum(int(problem.reduction.labelled(each).sum()) for each in targets if isinstance(each, Tensor))


def _row(each: SampledWaypoint, measured: Mapping[str, float], test: Any, labels: int) -> dict[str, Any]:
    accuracy = None if test is None else test.accuracy
    squared = each.norm**2
    return {
        "waypoint": each.waypoint.index,
        "tick": each.waypoint.tick,
        "arc": each.arc,
        "norm": each.norm,
        "norm_share": each.norm_share,
        **measured,
        "top_eigenvalue_times_norm2": measured["top_eigenvalue"] * squared,
        "trace_times_norm2": measured["trace"] * squared,
        "test_loss": None if test is None else test.loss,
        "test_accuracy": accuracy,
        "test_accuracy_standard_error": None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / labels),
    }
