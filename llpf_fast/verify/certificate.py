"""``certify`` and ``Certificate``: whether a polyline stays below a threshold, and what that verdict rests on."""

from __future__ import annotations

import math
import numbers
import platform
import random
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from .. import __version__
from ..errors import LLPFError, shown
from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from .arc_length import ArcLength, PathLocation
from .path_sampler import Evaluate, LinePoint, PathPoint, PathSampler
from .refinement import Refinement, nan_as_inf
from .worker_pool import WorkerPool

Verdict = Literal["connected", "not connected", "undecided"]


@dataclass(frozen=True)
class Certificate:
    """The verdict on a polyline, and what it rests on.

    ``verdict`` is "connected" where three conditions hold. The loss on the training set is finite and at most
    ``threshold`` at every evaluated point: on all samples where those were evaluated, elsewhere clearly below the
    threshold on the screening subset. No gap between evaluated points may exceed the threshold, by an estimate from the
    curvature. With ``verify_run``, the polyline leads from the run's start to its destination.

    ``verdict`` is "not connected" where one of these is known not to hold: ``reasons`` says which. Otherwise it is
    "undecided": ``undecided`` says what is open and what would settle it. ``connected`` is true where both lists are
    empty. The loss between evaluated points is estimated, not proved; ``resolution`` says how close the points are and
    gives the ``seed`` of their random offsets.

    ``differs`` says in what the data, the loss or the settings are not those of the search; ``notes`` says what else a
    reader should know. Neither changes the verdict.

    Losses are means over samples, and may be NaN or infinite. ``max_loss_standard_error`` is None where
    ``max_loss`` is over all samples. Accuracies are 0..1. ``lengths`` are L2: ``arc`` and ``straight`` of the
    parameters, ``buffers_arc`` and ``buffers_straight`` of all other tensors.
    """

    connected: bool
    verdict: Verdict
    reasons: list[str]
    undecided: list[str]
    threshold: float
    max_loss: float
    max_loss_at: PathLocation
    max_loss_standard_error: float | None
    start_loss: float
    destination_loss: float
    min_test_accuracy: float | None
    min_test_accuracy_at: PathLocation | None
    max_test_loss: float | None
    points_evaluated: int
    points_evaluated_on_test: int
    waypoints: int
    segments: int
    resolution: dict[str, Any]
    lengths: dict[str, float]
    evaluation: dict[str, Any]
    environment: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    points: list[PathPoint] = field(default_factory=list)
    straight_line: list[LinePoint] = field(default_factory=list)
    waypoint_sha256: list[str | None] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to certificate.json."""
        return asdict(self)


def certify(
    waypoints: Sequence[Any],
    evaluate_train: Evaluate,
    evaluate_test: Evaluate | None = None,
    *,
    threshold: float,
    full_train: Evaluate | None = None,
    interior: int | None = None,
    refinement: Refinement | None = None,
    worst: int = 10,
    straight_points: int = 21,
    parameter_names: Collection[str] | None = None,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    also_wrong: Iterable[str] = (),
    about: Mapping[str, Any] | None = None,
    seed: int | None = None,
    differs: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Certificate:
    """Evaluate the polyline through ``waypoints`` and compare its training loss with ``threshold``.

    Every waypoint and points inside each segment that changes anything are evaluated with ``evaluate_train`` and
    ``evaluate_test``. Then the gaps where the loss may be highest, or above the threshold, are halved
    (:class:`Refinement`; training set only). The values between two waypoints a and b are a + f (b - a) in float64 or
    complex128; values that do not change are passed through.

    With ``full_train``, ``evaluate_train`` is a screening subset of it. ``full_train`` then evaluates:

    - the endpoints, and the ``worst`` highest points (1/128 of the path apart);
    - every point whose screened loss is not clearly below the threshold: by three standard errors, and by twice the
      largest excess so far of the loss on all samples over that on the subset; highest first, until one is above the
      threshold on all samples;
    - the point that is highest after that, up to ``worst`` times;
    - the ends of gaps that the subset leaves open.

    The value on all samples replaces the screened one. A screened evaluation whose standard error is None, 0 or NaN
    decides nothing.

    Args:
        waypoints: state dicts, callables returning one, or objects with ``load()`` (and ``sha256``, which is recorded).
        evaluate_train, evaluate_test, full_train: state dict -> :class:`Evaluation`.
        threshold: highest loss allowed, in the units of the loss; may be negative.
        interior: points inside each segment before refinement, at least 3. When missing, as many (3, 7, 15, ...) as a
            spacing of 1/64 of the path's length takes. One is the middle; the others are equally spaced from a random
            offset on, each shifted by up to an eighth of their distance.
        straight_points: points of the straight line between the endpoints, for comparison; 0 for none.
        parameter_names: the parameters; all other tensors are buffers, whose length is measured separately. When
            missing all tensors count as parameters.
        workers: points evaluated at the same time; on the CPU torch's number of threads when missing, else 1. With more
            than one, ``evaluate_*`` are called from several threads.
        progress: called with (points done, points expected, text).
        also_wrong: further reasons why the path does not connect.
        about: plain values to record in the certificate, under ``evaluation`` and ``run``.
        seed: of the random offsets, which is recorded and gives the same points again. When missing a new one, so that
            no path can be made to be low at the evaluated points only.
        differs: in what the data, the loss or the settings are not those of the search; recorded.
        notes: what else a reader should know; recorded.

    Returns:
        The certificate. It is not connected where a loss is not finite, and where a tensor holds NaN or infinities that
        change along the path. It is undecided where gaps may exceed the threshold after refinement, and where a tensor
        of integers or booleans changes (but for BatchNorm's ``num_batches_tracked``).

    Raises:
        LLPFError: no waypoints; a threshold that is not a finite number; another argument of the wrong kind; a
            tensor that changes its dtype or shape along the path, appears or vanishes; errors of loading and
            evaluating.
    """
    if not isinstance(threshold, numbers.Real) or isinstance(threshold, bool) or not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {shown(threshold)}")
    for name, value in {
        "interior": interior,
        "worst": worst,
        "straight_points": straight_points,
        "workers": workers,
        "seed": seed,
    }.items():
        if value is not None and (not isinstance(value, numbers.Integral) or isinstance(value, bool)):
            raise LLPFError(f"{name} must be a whole number, got {shown(value)}")
    if interior is not None and interior < 1:
        raise LLPFError(f"at least 1 point inside each segment must be evaluated, got {interior}")
    if workers is not None and workers < 1:
        raise LLPFError(f"workers must be at least 1, got {workers}")
    if refinement is not None and not isinstance(refinement, Refinement):
        raise LLPFError(f"refinement must be a Refinement(...), got {shown(refinement)}")
    if progress is not None and not callable(progress):
        raise LLPFError(f"progress must be a function, got {shown(progress)}")
    if isinstance(parameter_names, str):
        raise LLPFError(f"parameter_names must be several names, got the text {shown(parameter_names)}")
    if isinstance(waypoints, Mapping) or not (hasattr(waypoints, "__getitem__") and hasattr(waypoints, "__len__")):
        raise LLPFError(f"waypoints must be a list of state dicts, got {type(waypoints).__name__}")
    line = Polyline(waypoints)
    rule = refinement or Refinement()
    if workers is None:
        device = getattr(evaluate_train, "device", None)
        workers = torch.get_num_threads() if device is not None and device.type == "cpu" else 1
    arc_length = ArcLength(line, parameter_names)
    seed = secrets.randbits(48) if seed is None else int(seed)
    inside = arc_length.interior_points(interior, random.Random(seed))
    with torch.random.fork_rng(devices=[]), WorkerPool(workers) as pool:
        sampler = PathSampler(line, arc_length, evaluate_train, evaluate_test, full_train, threshold, pool, progress)
        sampler.plan(inside, rule, worst, straight_points)
        sampler.grid(inside)
        sampler.refine(rule)
        sampler.decide(rule, worst)
        straight = sampler.straight(straight_points)
    about = about or {}
    start, destination = sampler.points[Position(0, 0.0)], sampler.points[Position(line.segments, 0.0)]
    highest = sampler.highest()
    points = [sampler.point(position) for position in sorted(sampler.points)]
    accuracies = [(point.test_accuracy, point.at) for point in points if point.test_accuracy is not None]
    # NaN counts as the lowest accuracy.
    lowest, lowest_at = min(accuracies, key=lambda pair: -nan_as_inf(-pair[0]), default=(None, None))
    test_losses = [point.test_loss for point in points if point.test_loss is not None]
    reasons, undecided = [*also_wrong, *sampler.reasons()], sampler.undecided()
    straight_change = line.straight_change(parameter_names)
    return Certificate(
        connected=not (reasons or undecided),
        verdict="not connected" if reasons else "undecided" if undecided else "connected",
        reasons=reasons,
        undecided=undecided,
        threshold=threshold,
        max_loss=sampler.loss(highest),
        max_loss_at=arc_length.location(highest),
        max_loss_standard_error=None if sampler.is_full(highest) else sampler.points[highest].standard_error,
        start_loss=start.loss,
        destination_loss=destination.loss,
        min_test_accuracy=lowest,
        min_test_accuracy_at=lowest_at,
        max_test_loss=max(test_losses, key=nan_as_inf, default=None),
        points_evaluated=len(points),
        points_evaluated_on_test=len(sampler.test),
        waypoints=len(line),
        segments=line.segments,
        resolution=sampler.resolution(inside, rule, seed),
        lengths={
            "arc": arc_length.total,
            "straight": straight_change.parameters,
            "buffers_arc": arc_length.buffers,
            "buffers_straight": straight_change.buffers,
        },
        evaluation={**sampler.evaluation(), **about.get("evaluation", {})},
        environment=_environment(workers),
        run=dict(about.get("run", {})),
        points=points,
        straight_line=straight,
        waypoint_sha256=[getattr(waypoint, "sha256", None) for waypoint in waypoints],
        differs=list(differs),
        notes=list(notes),
    )


def _environment(workers: int) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "llpf_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "workers": workers,
    }
