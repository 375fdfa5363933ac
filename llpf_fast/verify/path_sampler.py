"""The evaluated points of one path, and in what order they are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from .arc_length import SPACING, ArcLength, PathLocation
from .evaluator import Evaluation, WorkerPool
from .refinement import Gap, Refinement, find_gaps

#: state dict -> what it measures on one set; an :class:`~llpf_fast.verify.evaluator.Evaluator` or any function.
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]

#: A screened loss this many standard errors below the threshold, or closer, is evaluated on all samples.
_NEAR = 3.0
#: So is one that is closer to it than this many times the most by which all samples exceeded the subset so far.
_EXCESS = 2.0
#: Worst points evaluated on all samples are at least this share of the path apart, or they would all be of one peak.
_APART = SPACING / 2


class PathSampler:
    """The evaluated points of one path, and how they came about."""

    def __init__(
        self,
        line: Polyline,
        ruler: ArcLength,
        train: Evaluate,
        test: Evaluate | None,
        full: Evaluate | None,
        threshold: float,
        crew: WorkerPool,
        progress: ProgressCallback | None,
    ) -> None:
        self._line, self._ruler, self._threshold = line, ruler, threshold
        self._crew, self._progress = crew, progress
        self._train, self._test, self._full = train, test, full
        self._changing = [change.any for change in ruler.changes]
        #: The value that counts at each point.
        self.points: dict[Position, Evaluation] = {}
        self.screened: dict[Position, Evaluation] = {}
        self.full: dict[Position, Evaluation] = {}
        self.test: dict[Position, Evaluation] = {}
        self._done = self._expected = 0
        #: The most by which a loss on all samples exceeds that on the screening subset, where both are known.
        self._excess = 0.0
        #: What would look further into the gaps that are open at the end.
        self._remedy = ""

    def expect(self, inside: Sequence[Sequence[float]], rule: Refinement, worst: int, straight: int) -> None:
        """How many points progress counts to; refinement and confirmation may need more or fewer."""
        inner = sum(map(len, inside))
        self._expected = len(self._line) + inner
        self._expected += rule.rounds * min(rule.gaps, inner + len(inside)) + max(straight - 2, 0)
        self._expected += 0 if self._full is None else min(worst + 2, self._expected)

    def _tell(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            highest = f"highest loss {self.loss(self.highest()):.4f}" if self.points else ""
            self._progress(self._done, max(self._expected, self._done), f"{text}  {highest}".rstrip())

    def base(self, inside: Sequence[Sequence[float]]) -> None:
        """Waypoints and the points ``inside`` the segments (fractions of each), on both sets."""
        positions = [Position(i, fraction) for i, places in enumerate(inside) for fraction in (0.0, *places)]
        self._measure([*positions, Position(self._line.segments, 0.0)], "screening" if self._full else "evaluating")

    def refine(self, rule: Refinement) -> None:
        """The gaps where the loss may be highest, whatever the threshold."""
        for _ in range(rule.rounds):
            gaps = find_gaps(self._losses(), self._changing)
            gaps = [gap for gap in gaps if self._ruler.share(gap) / 2 >= rule.finest]
            if not gaps[: rule.gaps]:
                return
            self._measure([gap.middle for gap in gaps[: rule.gaps]], "refining", test=False)

    def decide(self, rule: Refinement, worst: int) -> None:
        """Evaluate on all samples what the screening cannot decide, and look into gaps that may exceed the threshold.

        Ends where a point is truly above the threshold, or nothing is open, or the budget of ``rule`` is used up.
        """
        if self._full is not None:
            ends = {Position(0, 0.0), Position(self._line.segments, 0.0)}
            self._measure_full(sorted({*ends, *self._worst(worst)}, key=self._falling))
        rounds, points, tops = rule.most_rounds - rule.rounds, rule.most_points, worst
        while not self._exceeded():
            if near := [position for position in self.points if self._is_near(position)]:
                self._measure_full([min(near, key=self._falling)])
            elif tops > 0 and not self.is_full(self.highest()):
                tops -= 1
                self._measure_full([self.highest()])
            elif not (gaps := self._open_gaps()):
                break
            elif ends := self._blurred_ends(gaps):
                self._measure_full(sorted(ends, key=self._falling)[: max(rule.gaps, 1)])
            else:
                wide = [gap for gap in gaps if gap.width / 2 >= rule.finest]
                chosen = wide[: max(points, 0)]
                if rounds <= 0 or not chosen:
                    limit = "larger most_rounds" if rounds <= 0 else "larger most_points" if wide else "smaller finest"
                    self._remedy = f"a Refinement with a {limit} looks closer"
                    break
                rounds, points = rounds - 1, points - len(chosen)
                self._measure([gap.middle for gap in chosen], "refining", test=False)
        for _ in range(tops):
            if self.is_full(self.highest()):
                break
            self._measure_full([self.highest()])

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
            excess = train.loss - self.screened[position].loss
            if excess > self._excess:
                self._excess = excess
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
        return -nan_highest(self.loss(position)), position

    def _worst(self, count: int) -> list[Position]:
        chosen: list[Position] = []
        for position in sorted(self.points, key=self._falling):
            if len(chosen) == count:
                break
            where = self._ruler.along(position)
            if all(abs(where - self._ruler.along(other)) >= _APART for other in chosen):
                chosen.append(position)
        return chosen

    def _level(self, position: Position) -> float:
        """What the loss on all samples is taken for: itself, or the screened one plus what the subset leaves open."""
        return self.loss(position) if self.is_full(position) else self.loss(position) + self._margin(position)

    def _margin(self, position: Position) -> float:
        """How far above its screened loss a point's loss on all samples may lie; infinite where nothing tells.

        A standard error of 0 tells nothing: a subset whose samples all have one loss does not show how others differ.
        """
        error = self.points[position].standard_error
        return max(_NEAR * error, _EXCESS * self._excess) if error is not None and error > 0 else math.inf

    def _is_near(self, position: Position) -> bool:
        """Whether only all samples can tell on which side of the threshold a point lies (or it is above it)."""
        return not (self.is_full(position) or self._level(position) <= self._threshold)

    def _is_wrong(self, evaluation: Evaluation) -> bool:
        return evaluation.not_finite > 0 or not math.isfinite(evaluation.loss) or evaluation.loss > self._threshold

    def _exceeded(self) -> bool:
        """Whether some point is known to be above the threshold."""
        return any(map(self._is_wrong, (self.points if self._full is None else self.full).values()))

    def _losses(self) -> dict[Position, float]:
        """Of all points, on one set: smoother than a mixture, so that curvature can be told from them."""
        return {position: evaluation.loss for position, evaluation in (self.screened or self.points).items()}

    def _gaps(self) -> list[Gap]:
        """Gaps by what their ends are taken for on all samples."""
        return find_gaps(self._losses(), self._changing, {position: self._level(position) for position in self.points})

    def _open_gaps(self) -> list[Gap]:
        return [gap for gap in self._gaps() if gap.highest_end <= self._threshold < gap.estimate]

    def _blurred_ends(self, gaps: Sequence[Gap]) -> set[Position]:
        """Ends of open gaps that are known on the screening subset only, where that is part of why they are open."""
        return {
            end
            for gap in gaps
            for end in gap.ends
            if not self.is_full(end) and self._level(end) + gap.rise > self._threshold
        }

    def reasons(self) -> list[str]:
        """Why the path is known not to stay below the threshold; empty where nothing is known against it."""
        found = []
        if broken := [(i, name) for i, change in enumerate(self._ruler.changes) for name in change.broken]:
            number, name = broken[0]
            found.append(
                f"the tensor {name} has values that are not finite and change between waypoints {number} and "
                f"{number + 1}: no straight line leads from one to the other{_further(broken)}"
            )
        bad = sorted(p for p, e in self.points.items() if e.not_finite > 0 or not math.isfinite(e.loss))
        if bad:
            found.append(f"the training loss is not finite at {len(bad)} points, first at {self._ruler.place(bad[0])}")
        above = sorted((p for p, e in self.points.items() if e.loss > self._threshold), key=self._falling)
        finite = [p for p in above if math.isfinite(self.loss(p))]
        if finite:
            worst = next(filter(self.is_full, finite), finite[0])
            kind = "" if self.is_full(worst) else " on the screening subset"
            found.append(
                f"the training loss{kind} is {self.loss(worst):.4g} at {self._ruler.place(worst)}, above the threshold "
                f"{self._threshold:g}, and above it at {len(above)} of {len(self.points)} points"
            )
        return found

    def undecided(self) -> list[str]:
        """What is open, and what would settle it; empty where nothing is, or where a point is above the threshold."""
        found = []
        if jumps := [(i, name) for i, change in enumerate(self._ruler.changes) for name in change.jumps]:
            number, name = jumps[0]
            kind = "booleans" if self._line.waypoint(0)[name].dtype == torch.bool else "integers"
            found.append(
                f"the {kind} of the tensor {name} change between waypoints {number} and {number + 1}: "
                f"no straight line leads from one to the other{_further(jumps)}"
            )
        gaps = [] if any(map(self._is_wrong, self.points.values())) else self._open_gaps()
        if gaps:
            first = min(gaps, key=lambda gap: (gap.waypoint, gap.start))
            start, end = map(self._ruler.place, first.ends)
            many = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
            found.append(
                f"the loss may exceed the threshold {self._threshold:g} in {many} between evaluated points, first "
                f"between {start} and {end}, where it may reach {first.estimate:.4g} by the curvature seen; "
                f"{self._remedy}"
            )
        return found

    def resolution(self, inside: Sequence[Sequence[float]], rule: Refinement, seed: int) -> dict[str, Any]:
        gaps = self._gaps()
        counts = [len(places) for places in inside if places]
        return {
            "rule": "every waypoint; inside each segment that changes anything, its middle and points that are nearly "
            "equally spaced, from a random place on; then, a round at a time, the gaps with the highest estimate of "
            "the loss inside (higher end + 2 |f''|/8 width^2) are halved, and after that all whose estimate exceeds "
            "the threshold; gaps are shares of the path's length (the parameters' or the buffers', whichever is "
            "larger)",
            "seed": seed,
            "fewest_interior_points": min(counts, default=0),
            "most_interior_points": max(counts, default=0),
            **asdict(rule),
            "widest_gap": max(map(self._ruler.share, gaps), default=0.0),
            "narrowest_gap": min(map(self._ruler.share, gaps), default=0.0),
            "highest_estimate_between_points": gaps[0].estimate if gaps else None,
            "gaps_that_may_exceed": len(self._open_gaps()),
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
            "loss_is": "exact" if all(map(_is_exact, self.points.values())) else "mean of batch means",
        }
        if screened is not None:
            train["rule"] = (
                "all points on the screening subset; on all samples the endpoints, the worst points, all that are not "
                f"{_NEAR:g} standard errors (and {_EXCESS:g} times the most by which all samples were seen to exceed "
                "the subset) below the threshold, until one exceeds it, the highest, and the ends of gaps that would "
                "otherwise be open"
            )
        return {
            "train": train,
            "test": None if test is None else {"samples": test.samples, "points": len(self.test)},
            "batchnorm_statistics": first.statistics,
            "dtype": str(getattr(self._train, "dtype", None)),
            "batch_size": getattr(self._train, "batch_size", None),
        }

    def point(self, position: Position) -> PathPoint:
        train, test = self.points[position], self.test.get(position)
        full = self.is_full(position)
        return PathPoint(
            at=self._ruler.place(position),
            train_loss=train.loss,
            train_samples=train.samples,
            standard_error=None if full else train.standard_error,
            screened_loss=self.screened[position].loss if full and position in self.screened else None,
            train_accuracy=train.accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
        )


def _is_exact(evaluation: Evaluation) -> bool:
    """Whether the loss is that of the set, however it was cut into batches."""
    return getattr(evaluation, "reduction", "exact") == "exact"


def _further(found: Sequence[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def nan_highest(value: float) -> float:
    return math.inf if math.isnan(value) else value


@dataclass(frozen=True)
class PathPoint:
    """One evaluated point. Losses are means; NaN where they came out so. None where it was not evaluated.

    ``train_samples`` tells on how many samples ``train_loss`` rests, ``standard_error`` is that of ``train_loss`` and
    None where all samples were evaluated. ``screened_loss`` is the subset's value where the full set's followed.
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
    """A point of the straight line between the endpoints, for comparison; the verdict does not look at it."""

    fraction: float
    train_loss: float
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
