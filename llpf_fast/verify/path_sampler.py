"""``PathSampler``: chooses the points of a path to evaluate, and evaluates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from .arc_length import SPACING, ArcLength, PathLocation
from .evaluator import Evaluation
from .refinement import Gap, Refinement, find_gaps, nan_as_inf
from .worker_pool import WorkerPool

#: state dict -> its evaluation on one set; an :class:`~llpf_fast.verify.evaluator.Evaluator` or any function.
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]

#: A screened point whose loss is within this many standard errors of the threshold is evaluated on all samples.
_NEAR = 3.0
#: So is one within this many times the largest excess so far of the loss on all samples over that on the subset.
_EXCESS = 2.0
#: Smallest distance between the worst points that are evaluated on all samples, as a share of the path: closer ones
#: would all be of one peak.
_APART = SPACING / 2


class PathSampler:
    """Chooses and evaluates the points of one path.

    Args:
        train, test, full: evaluate a state dict on the training set, the test set and, where ``train`` is a screening
            subset, the full training set.
        progress: called with (points done, points expected, text).

    Attributes:
        points: the evaluation that counts at each point: on all samples where it is known, else on the subset.
        screened, full, test: evaluations on the screening subset, on all samples and on the test set.
    """

    def __init__(
        self,
        line: Polyline,
        arc_length: ArcLength,
        train: Evaluate,
        test: Evaluate | None,
        full: Evaluate | None,
        threshold: float,
        pool: WorkerPool,
        progress: ProgressCallback | None,
    ) -> None:
        self._line, self._arc_length, self._threshold = line, arc_length, threshold
        self._pool, self._progress = pool, progress
        self._train, self._test, self._full = train, test, full
        self._changing = [change.any for change in arc_length.changes]
        self.points: dict[Position, Evaluation] = {}
        self.screened: dict[Position, Evaluation] = {}
        self.full: dict[Position, Evaluation] = {}
        self.test: dict[Position, Evaluation] = {}
        self._done = self._expected = 0
        #: Largest excess of a loss on all samples over that on the screening subset.
        self._excess = 0.0
        #: What to pass so that the gaps that are open at the end are refined further.
        self._remedy = ""

    def plan(self, inside: Sequence[Sequence[float]], rule: Refinement, worst: int, straight: int) -> None:
        """Set the number of points that progress counts to; refinement may need more or fewer."""
        inner = sum(map(len, inside))
        self._expected = len(self._line) + inner
        self._expected += rule.rounds * min(rule.gaps, inner + len(inside)) + max(straight - 2, 0)
        self._expected += 0 if self._full is None else min(worst + 2, self._expected)

    def _report_progress(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            highest = f"highest loss {self.loss(self.highest()):.4f}" if self.points else ""
            self._progress(self._done, max(self._expected, self._done), f"{text}  {highest}".rstrip())

    def grid(self, inside: Sequence[Sequence[float]]) -> None:
        """Evaluate all waypoints and the points ``inside`` the segments (fractions of each), on both sets."""
        positions = [Position(i, fraction) for i, fractions in enumerate(inside) for fraction in (0.0, *fractions)]
        self._measure([*positions, Position(self._line.segments, 0.0)], "screening" if self._full else "evaluating")

    def refine(self, rule: Refinement) -> None:
        """Halve the gaps with the highest estimate of the loss, whatever the threshold."""
        for _ in range(rule.rounds):
            gaps = find_gaps(self._losses(), self._changing)
            gaps = [gap for gap in gaps if self._arc_length.gap_share(gap) / 2 >= rule.finest]
            if not gaps[: rule.gaps]:
                return
            self._measure([gap.middle for gap in gaps[: rule.gaps]], "refining", test=False)

    def decide(self, rule: Refinement, worst: int) -> None:
        """Evaluate on all samples what the screening cannot decide, and halve gaps that may exceed the threshold.

        Stops where a point is above the threshold on all samples, where nothing is open, or where the budget of
        ``rule`` is used up.
        """
        if self._full is not None:
            endpoints = {Position(0, 0.0), Position(self._line.segments, 0.0)}
            self._measure_fully(sorted({*endpoints, *self._worst(worst)}, key=self._highest_first))
        rounds, points, tops = rule.most_rounds - rule.rounds, rule.most_points, worst
        while not self._exceeded():
            if near := [position for position in self.points if self._is_near(position)]:
                self._measure_fully([min(near, key=self._highest_first)])
            elif tops > 0 and not self.is_full(self.highest()):
                tops -= 1
                self._measure_fully([self.highest()])
            elif not (gaps := self._open_gaps()):
                break
            elif endpoints := self._undecided_endpoints(gaps):
                self._measure_fully(sorted(endpoints, key=self._highest_first)[: max(rule.gaps, 1)])
            else:
                wide = [gap for gap in gaps if gap.width / 2 >= rule.finest]
                chosen = wide[: max(points, 0)]
                if rounds <= 0 or not chosen:
                    limit = "larger most_rounds" if rounds <= 0 else "larger most_points" if wide else "smaller finest"
                    self._remedy = f"pass a Refinement with a {limit}"
                    break
                rounds, points = rounds - 1, points - len(chosen)
                self._measure([gap.middle for gap in chosen], "refining", test=False)
        for _ in range(tops):
            if self.is_full(self.highest()):
                break
            self._measure_fully([self.highest()])

    def straight(self, count: int) -> list[LinePoint]:
        """Evaluate ``count`` equally spaced points of the straight line between the endpoints, as ``grid`` does."""
        if count < 2 or self._line.segments < 1:
            return []
        known = {0.0: Position(0, 0.0), 1.0: Position(self._line.segments, 0.0)}
        evaluations = self.screened or self.points

        def measure(fraction: float) -> LinePoint:
            if fraction in known:
                train, test = evaluations[known[fraction]], self.test.get(known[fraction])
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

        points = []
        for point in self._pool.map(measure, [i / (count - 1) for i in range(count)]):
            if point.fraction not in known:
                self._report_progress("straight line")
            points.append(point)
        return points

    def _measure(self, positions: Sequence[Position], text: str, *, test: bool = True) -> None:
        """Evaluate new ``positions`` with ``train``, and on the test set unless ``test`` is false."""
        for position, evaluation in self._evaluate(self._train, positions, text, test=test):
            self.points[position] = evaluation
            if self._full is not None:
                self.screened[position] = evaluation

    def _measure_fully(self, positions: Sequence[Position]) -> None:
        """Evaluate screened ``positions`` on all samples, and on the test set where that is missing."""
        assert self._full is not None
        for position, evaluation in self._evaluate(self._full, positions, "all samples"):
            self.points[position] = self.full[position] = evaluation
            self._excess = max(self._excess, evaluation.loss - self.screened[position].loss)

    def _evaluate(
        self, train: Evaluate, positions: Sequence[Position], text: str, *, test: bool = True
    ) -> Iterator[tuple[Position, Evaluation]]:
        def evaluate(position: Position) -> tuple[Evaluation, Evaluation | None]:
            state = self._line.state(position)
            missing = test and position not in self.test
            return train(state), self._test(state) if missing and self._test is not None else None

        for position, (on_train, on_test) in zip(positions, self._pool.map(evaluate, positions), strict=True):
            if on_test is not None:
                self.test[position] = on_test
            yield position, on_train
            self._report_progress(text)

    def loss(self, position: Position) -> float:
        return self.points[position].loss

    def is_full(self, position: Position) -> bool:
        """Whether the evaluation at ``position`` is on all samples."""
        return self._full is None or position in self.full

    def highest(self) -> Position:
        """The point with the highest loss; NaN counts as the highest."""
        return min(self.points, key=self._highest_first)

    def _highest_first(self, position: Position) -> tuple[float, Position]:
        """A key that sorts the highest loss first, with NaN above all."""
        return -nan_as_inf(self.loss(position)), position

    def _worst(self, count: int) -> list[Position]:
        """The ``count`` highest points that are ``_APART`` from each other."""
        chosen: list[Position] = []
        for position in sorted(self.points, key=self._highest_first):
            if len(chosen) == count:
                break
            distance = self._arc_length.distance_along(position)
            if all(abs(distance - self._arc_length.distance_along(other)) >= _APART for other in chosen):
                chosen.append(position)
        return chosen

    def _level(self, position: Position) -> float:
        """An upper bound of the loss on all samples: itself, or the screened loss plus its margin."""
        return self.loss(position) if self.is_full(position) else self.loss(position) + self._margin(position)

    def _margin(self, position: Position) -> float:
        """How far a point's loss on all samples may lie above its screened loss; infinite where that is unknown.

        It is unknown for a standard error of 0: a subset of samples with equal losses does not show how others differ.
        """
        error = self.points[position].standard_error
        return max(_NEAR * error, _EXCESS * self._excess) if error is not None and error > 0 else math.inf

    def _is_near(self, position: Position) -> bool:
        """Whether a screened point may lie above the threshold on all samples."""
        return not (self.is_full(position) or self._level(position) <= self._threshold)

    def _violates(self, evaluation: Evaluation) -> bool:
        """Whether a loss is above the threshold or not finite."""
        return evaluation.not_finite > 0 or not math.isfinite(evaluation.loss) or evaluation.loss > self._threshold

    def _exceeded(self) -> bool:
        """Whether a point violates the threshold on all samples."""
        return any(map(self._violates, (self.points if self._full is None else self.full).values()))

    def _losses(self) -> dict[Position, float]:
        """The loss at all points on one set: a mixture of two sets would spoil the estimate of curvature."""
        return {position: evaluation.loss for position, evaluation in (self.screened or self.points).items()}

    def _gaps(self) -> list[Gap]:
        """All gaps, with bounds of the loss on all samples at their ends."""
        return find_gaps(self._losses(), self._changing, {position: self._level(position) for position in self.points})

    def _open_gaps(self) -> list[Gap]:
        """The gaps whose estimate exceeds the threshold though their ends do not."""
        return [gap for gap in self._gaps() if gap.highest_end <= self._threshold < gap.estimate]

    def _undecided_endpoints(self, gaps: Sequence[Gap]) -> set[Position]:
        """The screened ends of open gaps that would be closed, or closer to it, with the ends' loss on all samples."""
        return {
            end
            for gap in gaps
            for end in gap.endpoints
            if not self.is_full(end) and self._level(end) + gap.rise > self._threshold
        }

    def reasons(self) -> list[str]:
        """Why the path does not stay below the threshold; empty where no evaluated point says so."""
        reasons = []
        if broken := [(i, name) for i, change in enumerate(self._arc_length.changes) for name in change.broken]:
            number, name = broken[0]
            reasons.append(
                f"the tensor {name} has values that are not finite and change between waypoints {number} and "
                f"{number + 1}: no straight line leads from one to the other{_and_more(broken)}"
            )
        bad = sorted(p for p, e in self.points.items() if e.not_finite > 0 or not math.isfinite(e.loss))
        if bad:
            reasons.append(
                f"the training loss is not finite at {len(bad)} of {len(self.points)} points, first at "
                f"{self._arc_length.location(bad[0])}"
            )
        above = sorted((p for p, e in self.points.items() if e.loss > self._threshold), key=self._highest_first)
        finite = [p for p in above if math.isfinite(self.loss(p))]
        if finite:
            worst = next(filter(self.is_full, finite), finite[0])
            kind = "" if self.is_full(worst) else " on the screening subset"
            reasons.append(
                f"the training loss{kind} is {self.loss(worst):.4g} at {self._arc_length.location(worst)}, above the "
                f"threshold {self._threshold:g}; it is above the threshold at {len(above)} of {len(self.points)} points"
            )
        return reasons

    def undecided(self) -> list[str]:
        """What is open, and what would settle it. Gaps are left out where a point is above the threshold."""
        undecided = []
        if jumps := [(i, name) for i, change in enumerate(self._arc_length.changes) for name in change.jumps]:
            number, name = jumps[0]
            kind = "booleans" if self._line.waypoint(0)[name].dtype == torch.bool else "integers"
            undecided.append(
                f"the {kind} of the tensor {name} change between waypoints {number} and {number + 1}: "
                f"no straight line leads from one to the other{_and_more(jumps)}"
            )
        gaps = [] if any(map(self._violates, self.points.values())) else self._open_gaps()
        if gaps:
            first = min(gaps, key=lambda gap: (gap.waypoint, gap.start))
            start, end = map(self._arc_length.location, first.endpoints)
            many = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
            undecided.append(
                f"the loss may exceed the threshold {self._threshold:g} in {many} between evaluated points, first "
                f"between {start} and {end}, where the curvature allows {first.estimate:.4g}; {self._remedy}"
            )
        return undecided

    def resolution(self, inside: Sequence[Sequence[float]], rule: Refinement, seed: int) -> dict[str, Any]:
        """How close the evaluated points are, and by which rule they were chosen, for the certificate."""
        gaps = self._gaps()
        counts = [len(fractions) for fractions in inside if fractions]
        return {
            "rule": "every waypoint; inside each segment that changes anything, its middle and nearly equally spaced "
            "points from a random offset on; then, in rounds, the gaps with the highest estimate of the loss inside "
            "(higher end + 2 |f''|/8 width^2) are halved, and after that all whose estimate exceeds the threshold; "
            "gaps are shares of the path's length (of the parameters or of the buffers, whichever is larger)",
            "seed": seed,
            "fewest_interior_points": min(counts, default=0),
            "most_interior_points": max(counts, default=0),
            **asdict(rule),
            "widest_gap": max(map(self._arc_length.gap_share, gaps), default=0.0),
            "narrowest_gap": min(map(self._arc_length.gap_share, gaps), default=0.0),
            "highest_estimate_between_points": gaps[0].estimate if gaps else None,
            "gaps_that_may_exceed": len(self._open_gaps()),
        }

    def evaluation(self) -> dict[str, Any]:
        """On which samples and points the losses were computed, for the certificate."""
        first = self.points[Position(0, 0.0)]
        screened = self.screened.get(Position(0, 0.0))
        test = next(iter(self.test.values()), None)
        # The caller's own function may return any object with the attributes that are read here.
        exact = all(getattr(point, "reduction", "exact") == "exact" for point in self.points.values())
        train: dict[str, Any] = {
            "samples": first.samples,
            "screened": screened is not None,
            "screening_samples": None if screened is None else screened.samples,
            "points_on_all_samples": len(self.points) if screened is None else len(self.full),
            "loss_is": "exact" if exact else "mean of batch means",
        }
        if screened is not None:
            train["rule"] = (
                "all points on the screening subset; on all samples the endpoints, the worst points, the highest, the "
                "ends of gaps that would otherwise be open, and, until one exceeds the threshold, all points that are "
                f"not {_NEAR:g} standard errors (and {_EXCESS:g} times the largest excess over the subset) below it"
            )
        return {
            "train": train,
            "test": None if test is None else {"samples": test.samples, "points": len(self.test)},
            "batchnorm_statistics": first.statistics,
            "dtype": str(getattr(self._train, "dtype", None)),
            "batch_size": getattr(self._train, "batch_size", None),
        }

    def point(self, position: Position) -> PathPoint:
        """The evaluations at ``position``, as the certificate lists them."""
        train, test = self.points[position], self.test.get(position)
        full = self.is_full(position)
        return PathPoint(
            at=self._arc_length.location(position),
            train_loss=train.loss,
            train_samples=train.samples,
            standard_error=None if full else train.standard_error,
            screened_loss=self.screened[position].loss if full and position in self.screened else None,
            train_accuracy=train.accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
        )


def _and_more(items: Sequence[Any]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


@dataclass(frozen=True)
class PathPoint:
    """One evaluated point. Losses are means over samples and may be NaN; what was not evaluated is None.

    ``train_loss`` is over ``train_samples`` samples. ``standard_error`` is that of ``train_loss``, None where all
    samples were evaluated. ``screened_loss`` is the loss on the screening subset of a point that was then evaluated on
    all samples.
    """

    at: PathLocation
    train_loss: float
    train_samples: int
    standard_error: float | None = None
    screened_loss: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class LinePoint:
    """A point of the straight line between the endpoints, for comparison; the verdict does not depend on it."""

    fraction: float
    train_loss: float
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
