"""``certify`` and ``Certificate``: whether a polyline stays at or below a threshold, and what that verdict rests on."""

from __future__ import annotations

import math
import numbers
import platform
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch

from .. import __version__
from ..errors import LLPFError, shown, unknown_name
from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from .arc_length import PathLocation
from .coverage import Piece
from .enclosure.bisection import Limits
from .evaluator import Evaluator
from .pictures import LinePoint, PathPoint, straight_line
from .verdict import Level, Verdict, Witness
from .verification import Verification, nan_as_inf
from .worker_pool import WorkerPool


@dataclass(frozen=True)
class Certificate:
    """The verdict on a polyline, and what it rests on.

    ``verdict``:

    - "proved": an enclosure of network and loss shows that the loss on all training samples is at most ``threshold`` at
      every point of the polyline.
    - "sampled": every piece is closed, but on chosen samples, or by a rule between evaluated points in place of an
      enclosure.
    - "refuted": the loss on all training samples is above the threshold at ``witness``, or not finite.
    - "undecided": pieces are open, or no straight line joins two waypoints; ``undecided`` says what would close them.

    ``covers`` says in one sentence on which samples, by which rule and how far the verdict holds. ``connected`` is true
    where the verdict is "proved" or "sampled" and ``reasons`` is empty. ``reasons`` also has what the verdict does not
    depend on: a path that does not arrive; data, loss, statistics or threshold other than the search's.

    ``bound`` is the upper bound of the loss on the whole path; None where the pieces do not cover it. ``max_loss`` is
    the highest evaluated loss. ``differs`` says in what the data, the loss or the settings are not those of the search;
    ``notes`` what else a reader should know.

    Losses are means over samples, and may be NaN or infinite. ``max_loss_standard_error`` is None where ``max_loss`` is
    over all samples. Accuracies are 0..1. ``lengths`` are L2: ``arc`` and ``straight`` of the parameters,
    ``buffers_arc`` and ``buffers_straight`` of all other tensors. ``pieces`` are (waypoint, start, end, bound at the
    start, at the end, cause): a cause, where there is one, says why the piece is open.
    """

    connected: bool
    verdict: Verdict
    covers: str
    level: Level
    reasons: list[str]
    undecided: list[str]
    threshold: float
    bound: float | None
    witness: Witness | None
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
    pieces: list[list[Any]] = field(default_factory=list)
    waypoint_sha256: list[str | None] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to certificate.json."""
        return asdict(self)


def certify(
    waypoints: Sequence[Any],
    train: Evaluator,
    test: Evaluator | None = None,
    *,
    threshold: float,
    level: Level = "full",
    limits: Limits | None = None,
    straight_points: int = 21,
    parameter_names: Collection[str] | None = None,
    workers: int | None = None,
    seed: int | None = None,
    progress: ProgressCallback | None = None,
    also_wrong: Iterable[str] = (),
    way: str = "from its first waypoint to its last",
    about: Mapping[str, Any] | None = None,
    differs: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Certificate:
    """Prove, or else check, that the training loss is at most ``threshold`` on the polyline through ``waypoints``.

    The values between two waypoints a and b are a + f (b - a); values that do not change are passed through. Pieces of
    the segments are closed by an enclosure of the network and the loss, or, where one of their operations has none, by
    random points and a rule between them (:func:`~llpf_fast.verify.points.cover_by_points`). A point above the
    threshold is confirmed by an ordinary evaluation on all samples.

    Args:
        waypoints: state dicts, callables returning one, or objects with ``load()`` (and ``sha256``, which is recorded).
        train: of the training samples.
        test: of the test set, for the picture: it is evaluated at waypoints and midpoints.
        threshold: highest loss allowed, in the units of the loss; may be negative.
        level: "full": every sample counts on every piece. "sampled": the hardest by their losses at up to five
            waypoints, and random ones of the others (:class:`~llpf_fast.verify.sample_choice.SampleChoice`); all where
            that is not fewer, and where the loss depends on which samples share a batch.
        limits: when to give up.
        straight_points: points of the straight line between the endpoints, for comparison, on at most 2,000 samples; 0
            for none.
        parameter_names: the parameters; all other tensors are buffers, whose length is measured separately. When
            missing all tensors count as parameters.
        workers: threads; on the CPU torch's number of threads when missing, else 1.
        seed: of what is drawn (samples, points), which is recorded. When missing a new one, so that no path can be made
            for the draw.
        progress: called with (parts done, parts in all, text).
        also_wrong: further reasons why the path does not connect.
        way: from where to where the polyline leads, for ``covers``.
        about: plain values to record in the certificate, under ``evaluation`` and ``run``.
        differs: in what the data, the loss or the settings are not those of the search; recorded.
        notes: what else a reader should know; recorded.

    Raises:
        LLPFError: no waypoints; a threshold that is not a finite number; another argument of the wrong kind; a
            tensor that changes its dtype or shape along the path, appears or vanishes; errors of loading and
            evaluating.
    """
    whole_numbers = {"straight_points": straight_points, "workers": workers, "seed": seed}
    _check_arguments(waypoints, train, test, threshold, level, limits, parameter_names, progress, whole_numbers)
    if workers is None:
        workers = torch.get_num_threads() if train.device.type == "cpu" else 1
    seed = secrets.randbits(48) if seed is None else int(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), WorkerPool(workers) as pool:
        work = Verification(
            Polyline(waypoints), train, test, float(threshold), level, limits, parameter_names, workers, seed, pool
        )
        work.progress = progress
        findings = work.decide()
        work.draw(findings)
        findings = work.confirm_points(findings)
        straight = straight_line(work.line, train, test, straight_points, pool, work.report)
        unreliable = work.unreliable_losses()
    differs, about = list(differs), about or {}
    reasons = [*findings.reasons(), *also_wrong, *unreliable]
    undecided = findings.undecided()
    points = [work.point(position) for position in sorted(work.measured)]
    highest = min(work.measured, key=lambda position: (-nan_as_inf(work.loss(position)), position))
    accuracies = [(point.test_accuracy, point.at) for point in points if point.test_accuracy is not None]
    # NaN counts as the lowest accuracy.
    lowest, lowest_at = min(accuracies, key=lambda pair: -nan_as_inf(-pair[0]), default=(None, None))
    test_losses = [point.test_loss for point in points if point.test_loss is not None]
    straight_change = work.line.straight_change(parameter_names)
    remarks = [f"unlike the search: {line}" for line in differs]
    return Certificate(
        connected=not (reasons or undecided),
        verdict=findings.verdict,
        covers=findings.covers(way, remarks),
        level="full" if work.chosen.complete else "sampled",
        reasons=reasons,
        undecided=undecided,
        threshold=float(threshold),
        bound=findings.bound,
        witness=findings.witness,
        max_loss=work.loss(highest),
        max_loss_at=work.arc_length.location(highest),
        max_loss_standard_error=work.point(highest).standard_error,
        start_loss=work.loss(Position(0, 0.0)),
        destination_loss=work.loss(Position(work.line.segments, 0.0)),
        min_test_accuracy=lowest,
        min_test_accuracy_at=lowest_at,
        max_test_loss=max(test_losses, key=nan_as_inf, default=None),
        points_evaluated=len(points),
        points_evaluated_on_test=len(work.on_test),
        waypoints=len(work.line),
        segments=work.line.segments,
        resolution=work.resolution(findings),
        lengths={
            "arc": work.arc_length.total,
            "straight": straight_change.parameters,
            "buffers_arc": work.arc_length.buffers,
            "buffers_straight": straight_change.buffers,
        },
        evaluation={**work.evaluation(findings, len(straight)), **about.get("evaluation", {})},
        environment=_environment(workers),
        run=dict(about.get("run", {})),
        points=points,
        straight_line=straight,
        pieces=[_listed(piece) for piece in (*findings.coverage.closed, *findings.coverage.open)],
        waypoint_sha256=[getattr(waypoint, "sha256", None) for waypoint in waypoints],
        differs=differs,
        notes=[*notes, *work.notes],
    )


def _listed(piece: Piece) -> list[Any]:
    return [piece.waypoint, piece.start, piece.end, piece.start_bound, piece.end_bound, piece.cause]


def _check_arguments(
    waypoints: Any,
    train: Any,
    test: Any,
    threshold: Any,
    level: Any,
    limits: Any,
    parameter_names: Any,
    progress: Any,
    whole_numbers: Mapping[str, Any],
) -> None:
    if not isinstance(threshold, numbers.Real) or isinstance(threshold, bool) or not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {shown(threshold)}")
    for name, value in whole_numbers.items():
        if value is not None and (not isinstance(value, numbers.Integral) or isinstance(value, bool)):
            raise LLPFError(f"{name} must be a whole number, got {shown(value)}")
    if whole_numbers["workers"] is not None and whole_numbers["workers"] < 1:
        raise LLPFError(f"workers must be at least 1, got {whole_numbers['workers']}")
    if level not in get_args(Level):
        raise LLPFError(unknown_name("level", str(level), get_args(Level)))
    if limits is not None and not isinstance(limits, Limits):
        raise LLPFError(f"limits must be Limits(...), got {shown(limits)}")
    if progress is not None and not callable(progress):
        raise LLPFError(f"progress must be a function, got {shown(progress)}")
    for name, value in (("train", train), ("test", test)):
        if not isinstance(value, Evaluator) and not (value is None and name == "test"):
            raise LLPFError(f"{name} must be an Evaluator(module, loss_fn, inputs, targets), got {shown(value)}")
    if isinstance(parameter_names, str):
        raise LLPFError(f"parameter_names must be several names, got the text {shown(parameter_names)}")
    if isinstance(waypoints, Mapping) or not (hasattr(waypoints, "__getitem__") and hasattr(waypoints, "__len__")):
        raise LLPFError(f"waypoints must be a list of state dicts, got {type(waypoints).__name__}")


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
