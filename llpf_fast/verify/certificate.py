"""``certify``: is the loss below the threshold everywhere on a polyline?"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import LLPFError
from .evaluate import Evaluation
from .measure import Crew
from .polyline import Polyline, Position
from .records import Certificate, LinePoint, PathPoint, Place
from .refinement import Refinement, find_gaps

#: state dict -> what it measures on one set; an :class:`~llpf_fast.verify.evaluate.Evaluator` or any function.
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]
#: (points done, points expected, what is being done)
Progress = Callable[[int, int, str], None]

#: About as many interior points before refinement, whatever the number of waypoints: at least the middle of each
#: segment, at most fifteen.
_INTERIOR_POINTS = 200
_MOST_INTERIOR = 15
#: A screened loss this many standard errors below the threshold, or closer, is evaluated on all samples.
_NEAR = 3.0
#: Worst points evaluated on all samples are at least this many segments apart, or they would all be of one peak.
_APART = 0.5


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
    progress: Progress | None = None,
    also_wrong: Iterable[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Certificate:
    """Evaluate the polyline through ``waypoints`` and judge it against ``threshold``.

    Every waypoint and ``interior`` equally spaced points inside each segment are evaluated with ``evaluate_train`` and
    ``evaluate_test``; then the gaps where the loss may be highest are halved (:class:`Refinement`; training set only).
    Values between two waypoints a, b are a + f (b - a) in float64; integer tensors are a's.

    With ``full_train`` given, ``evaluate_train`` is taken for a screening subset of it, and ``full_train`` then
    evaluates: the endpoints, the ``worst`` highest points (half a segment apart), every point whose screened loss is
    within three standard errors of the threshold or above it (worst first, until one is truly above), and, up to
    ``worst`` times, whatever point is highest after that. Where both are known the full value counts.

    Args:
        waypoints: state dicts, callables returning one, or objects with ``load()`` (and ``sha256``, which is recorded).
        threshold: highest loss allowed, in the units of the loss.
        interior: points inside each segment before refinement; when missing 1, 3, 7 or 15, some 200 in all.
        straight_points: of the straight line between the endpoints, for comparison; 0 for none.
        parameter_names: what the lengths count; all floating tensors when missing.
        workers: points measured at a time; on the CPU torch's number of threads when missing, else 1. With more than
            one, ``evaluate_*`` are called from several threads.
        progress: called with (points done, points expected, text).
        also_wrong: further reasons why the path does not connect.
        about: what to record in the certificate: ``evaluation``, ``run`` (plain values).

    Returns:
        The certificate. A loss that is not finite makes it not connected.

    Raises:
        LLPFError: no waypoints; a threshold that is not a finite number; whatever loading or evaluating raises.
    """
    if not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {threshold}")
    line = Polyline(waypoints)
    rule = refinement or Refinement()
    inside = _interior_points(line.segments) if interior is None else interior
    if inside < 1:
        raise LLPFError(f"at least 1 point inside each segment must be evaluated, got {inside}")
    if workers is None:
        device = getattr(evaluate_train, "device", None)
        workers = torch.get_num_threads() if device is not None and device.type == "cpu" else 1
    ruler = _Ruler(line, parameter_names)
    with torch.random.fork_rng(devices=[]), Crew(workers) as crew:
        survey = _Survey(line, evaluate_train, evaluate_test, full_train, threshold, crew, progress)
        survey.expect(inside, rule, worst, straight_points)
        survey.base(inside)
        survey.refine(rule)
        survey.confirm(worst)
        straight = survey.straight(straight_points)
    about = about or {}
    at_start, at_end = survey.points[Position(0, 0.0)], survey.points[Position(line.segments, 0.0)]
    highest = survey.highest()
    points = [survey.point(position, ruler) for position in sorted(survey.points)]
    accuracies = [(point.test_accuracy, point.at) for point in points if point.test_accuracy is not None]
    lowest, lowest_at = min(accuracies, key=lambda pair: pair[0], default=(None, None))
    test_losses = [point.test_loss for point in points if point.test_loss is not None]
    reasons = [*also_wrong, *survey.reasons(ruler)]
    return Certificate(
        connected=not reasons,
        reasons=reasons,
        threshold=threshold,
        max_loss=survey.loss(highest),
        max_loss_at=ruler.place(highest),
        max_loss_standard_error=None if survey.is_full(highest) else survey.points[highest].standard_error,
        start_loss=at_start.loss,
        destination_loss=at_end.loss,
        min_test_accuracy=lowest,
        min_test_accuracy_at=lowest_at,
        max_test_loss=max(test_losses, key=_nan_highest, default=None),
        points_evaluated=len(points),
        points_evaluated_on_test=len(survey.test),
        waypoints=len(line),
        segments=line.segments,
        resolution=survey.resolution(inside, rule),
        lengths={"arc": ruler.total, "straight": line.straight_length(parameter_names)},
        evaluation={**survey.evaluation(), **about.get("evaluation", {})},
        environment=_environment(workers),
        run=dict(about.get("run", {})),
        points=points,
        straight_line=straight,
        waypoint_sha256=[getattr(waypoint, "sha256", None) for waypoint in waypoints],
    )


class _Survey:
    """The evaluated points of one path, and how they came about."""

    def __init__(
        self,
        line: Polyline,
        train: Evaluate,
        test: Evaluate | None,
        full: Evaluate | None,
        threshold: float,
        crew: Crew,
        progress: Progress | None,
    ) -> None:
        self._line, self._threshold, self._crew, self._progress = line, threshold, crew, progress
        self._train, self._test, self._full = train, test, full
        #: The value that counts at each point.
        self.points: dict[Position, Evaluation] = {}
        self.screened: dict[Position, Evaluation] = {}
        self.full: dict[Position, Evaluation] = {}
        self.test: dict[Position, Evaluation] = {}
        self._done = self._expected = 0

    def expect(self, inside: int, rule: Refinement, worst: int, straight: int) -> None:
        """How many points progress counts to; refinement and confirmation may need more or fewer."""
        self._expected = len(self._line) + self._line.segments * inside
        self._expected += rule.rounds * min(rule.gaps, self._line.segments * (inside + 1)) + max(straight - 2, 0)
        self._expected += 0 if self._full is None else min(worst + 2, self._expected)

    def _tell(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            highest = f"highest loss {self.loss(self.highest()):.4f}" if self.points else ""
            self._progress(self._done, max(self._expected, self._done), f"{text}  {highest}".rstrip())

    def base(self, inside: int) -> None:
        """Waypoints and the points equally spaced between them, on both sets."""
        fractions = [j / (inside + 1) for j in range(inside + 1)]
        positions = [Position(i, f) for i in range(self._line.segments) for f in fractions]
        self._measure([*positions, Position(self._line.segments, 0.0)], "screening" if self._full else "evaluating")

    def refine(self, rule: Refinement) -> None:
        for number in range(rule.most_rounds):
            gaps = [gap for gap in self._gaps() if gap.width / 2 >= rule.finest]
            if number >= rule.rounds:
                gaps = [gap for gap in gaps if gap.highest_end <= self._threshold < gap.estimate]
            if not gaps[: rule.gaps]:
                return
            self._measure([gap.middle for gap in gaps[: rule.gaps]], "refining", test=False)

    def confirm(self, worst: int) -> None:
        """Evaluate on all samples what the screening cannot decide."""
        if self._full is None:
            return
        ends = [Position(0, 0.0), Position(self._line.segments, 0.0)]
        self._measure_full(sorted({*ends, *self._worst(worst)}, key=self._falling))
        for position in sorted(self.points, key=self._falling):
            if self._exceeded():
                break
            if not self.is_full(position) and self._is_near(self.points[position]):
                self._measure_full([position])
        for _ in range(worst):
            highest = self.highest()
            if self.is_full(highest):
                break
            self._measure_full([highest])

    def straight(self, count: int) -> list[LinePoint]:
        """``count`` equally spaced points of the straight line between the endpoints, on the (screening) sets."""
        if count < 2 or self._line.segments < 1:
            return []
        known = {0.0: Position(0, 0.0), 1.0: Position(self._line.segments, 0.0)}
        ends = self.screened or self.points

        def measure(fraction: float) -> LinePoint:
            if fraction in known:
                train, test = ends[known[fraction]], self.test.get(known[fraction])
            else:
                state = self._line.straight(fraction)
                train, test = self._train(state), self._test(state) if self._test is not None else None
            return LinePoint(
                fraction,
                train.loss,
                train.accuracy,
                None if test is None else test.loss,
                None if test is None else test.accuracy,
            )

        fractions = [i / (count - 1) for i in range(count)]
        found = []
        for point in self._crew.map(measure, fractions):
            if point.fraction not in known:
                self._tell("straight line")
            found.append(point)
        return found

    def _measure(self, positions: Sequence[Position], text: str, *, test: bool = True) -> None:
        def measure(position: Position) -> tuple[Evaluation, Evaluation | None]:
            state = self._line.state(position)
            return self._train(state), self._test(state) if test and self._test is not None else None

        for position, (train, on_test) in zip(positions, self._crew.map(measure, positions), strict=True):
            self.points[position] = train
            if self._full is not None:
                self.screened[position] = train
            if on_test is not None:
                self.test[position] = on_test
            self._tell(text)

    def _measure_full(self, positions: Sequence[Position]) -> None:
        full = self._full
        assert full is not None

        def measure(position: Position) -> tuple[Evaluation, Evaluation | None]:
            state = self._line.state(position)
            missing = self._test is not None and position not in self.test
            return full(state), self._test(state) if missing and self._test is not None else None

        for position, (train, on_test) in zip(positions, self._crew.map(measure, positions), strict=True):
            self.points[position] = self.full[position] = train
            if on_test is not None:
                self.test[position] = on_test
            self._tell("all samples")

    def loss(self, position: Position) -> float:
        return self.points[position].loss

    def is_full(self, position: Position) -> bool:
        return self._full is None or position in self.full

    def highest(self) -> Position:
        return min(self.points, key=self._falling)

    def _falling(self, position: Position) -> tuple[float, Position]:
        """Sorts the highest loss first; NaN counts as higher than anything."""
        return -_nan_highest(self.loss(position)), position

    def _worst(self, count: int) -> list[Position]:
        chosen: list[Position] = []
        for position in sorted(self.points, key=self._falling):
            if len(chosen) == count:
                break
            where = position.waypoint + position.fraction
            if all(abs(where - other.waypoint - other.fraction) >= _APART for other in chosen):
                chosen.append(position)
        return chosen

    def _is_near(self, evaluation: Evaluation) -> bool:
        margin = _NEAR * (evaluation.standard_error or 0.0)
        return not evaluation.loss + margin <= self._threshold

    def _is_wrong(self, evaluation: Evaluation) -> bool:
        return evaluation.not_finite > 0 or not math.isfinite(evaluation.loss) or evaluation.loss > self._threshold

    def _exceeded(self) -> bool:
        return any(self._is_wrong(evaluation) for evaluation in (self.full or self.points).values())

    def _gaps(self) -> list[Any]:
        losses = self.screened or self.points
        return find_gaps({position: evaluation.loss for position, evaluation in losses.items()}, self._line.segments)

    def reasons(self, ruler: _Ruler) -> list[str]:
        """Why the path is not below the threshold; empty where it is."""
        found = []
        bad = sorted(p for p, e in self.points.items() if e.not_finite > 0 or not math.isfinite(e.loss))
        if bad:
            found.append(f"the training loss is not finite at {len(bad)} points, first at {ruler.place(bad[0])}")
        above = sorted((p for p, e in self.points.items() if e.loss > self._threshold), key=self._falling)
        finite = [p for p in above if math.isfinite(self.loss(p))]
        if finite:
            worst = finite[0]
            kind = "" if self.is_full(worst) else " on the screening subset"
            found.append(
                f"the training loss{kind} is {self.loss(worst):.4g} at {ruler.place(worst)}, above the threshold "
                f"{self._threshold:g}, and above it at {len(above)} of {len(self.points)} points"
            )
        return found

    def resolution(self, inside: int, rule: Refinement) -> dict[str, Any]:
        gaps = self._gaps()
        open_gaps = [gap for gap in gaps if gap.highest_end <= self._threshold < gap.estimate]
        return {
            "rule": "every waypoint and interior_per_segment equally spaced points inside each segment; then, a round "
            "at a time, the gaps with the highest estimate of the loss inside (higher end + 2 |f''|/8 width^2) are "
            "halved",
            "interior_per_segment": inside,
            **asdict(rule),
            "widest_gap": max((gap.width for gap in gaps), default=0.0),
            "narrowest_gap": min((gap.width for gap in gaps), default=0.0),
            "highest_estimate_between_points": gaps[0].estimate if gaps else None,
            "gaps_that_may_exceed": len(open_gaps),
        }

    def evaluation(self) -> dict[str, Any]:
        """On what the losses rest."""
        first = self.points[Position(0, 0.0)]
        screened = self.screened.get(Position(0, 0.0))
        test = next(iter(self.test.values()), None)
        train: dict[str, Any] = {
            "samples": first.samples,
            "screened": screened is not None,
            "screening_samples": None if screened is None else screened.samples,
            "points_on_all_samples": len(self.points) if screened is None else len(self.full),
        }
        if screened is not None:
            train["rule"] = (
                "all points on the screening subset; on all samples the endpoints, the worst points half a segment "
                f"apart, all within {_NEAR:g} standard errors of the threshold until one exceeds it, and the highest"
            )
        return {
            "train": train,
            "test": None if test is None else {"samples": test.samples, "points": len(self.test)},
            "batchnorm_statistics": first.statistics,
            "dtype": str(getattr(self._train, "dtype", None)),
            "batch_size": getattr(self._train, "batch_size", None),
        }

    def point(self, position: Position, ruler: _Ruler) -> PathPoint:
        train, test = self.points[position], self.test.get(position)
        full = self.is_full(position)
        return PathPoint(
            at=ruler.place(position),
            train_loss=train.loss,
            train_samples=train.samples,
            standard_error=None if full else train.standard_error,
            screened_loss=self.screened[position].loss if full and position in self.screened else None,
            train_accuracy=train.accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
        )


class _Ruler:
    """Arc length along a polyline."""

    def __init__(self, line: Polyline, names: Collection[str] | None) -> None:
        self._lengths = line.lengths(names)
        self.total = math.fsum(self._lengths)
        if not (math.isfinite(self.total) and self.total > 0):
            # Waypoints with NaN, or all alike: equally long segments still put the points in order.
            self._lengths = [1.0] * line.segments
        self._sum = math.fsum(self._lengths)

    def place(self, position: Position) -> Place:
        before = math.fsum(self._lengths[: position.waypoint])
        if position.fraction:
            before += position.fraction * self._lengths[position.waypoint]
        return Place(position.waypoint, position.fraction, before / self._sum if self._sum else 0.0)


def _interior_points(segments: int) -> int:
    """One less than a power of two, so that halving the gaps meets no point twice."""
    inside = 1
    while 2 * inside + 1 <= _MOST_INTERIOR and segments * (2 * inside + 1) <= _INTERIOR_POINTS:
        inside = 2 * inside + 1
    return inside


def _nan_highest(value: float) -> float:
    return math.inf if math.isnan(value) else value


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
