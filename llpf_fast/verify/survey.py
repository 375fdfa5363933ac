"""The evaluated points of one path, and in what order they are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from .evaluate import Evaluation
from .measure import Crew
from .polyline import Polyline, Position
from .records import LinePoint, PathPoint
from .refinement import Gap, Refinement, find_gaps
from .ruler import SPACING, Ruler

#: state dict -> what it measures on one set; an :class:`~llpf_fast.verify.evaluate.Evaluator` or any function.
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]
#: (points done, points expected, what is being done)
Progress = Callable[[int, int, str], None]

#: A screened loss this many standard errors below the threshold, or closer, is evaluated on all samples.
_NEAR = 3.0
#: Worst points evaluated on all samples are at least this share of the path apart, or they would all be of one peak.
_APART = SPACING / 2


class Survey:
    """The evaluated points of one path, and how they came about."""

    def __init__(
        self,
        line: Polyline,
        ruler: Ruler,
        train: Evaluate,
        test: Evaluate | None,
        full: Evaluate | None,
        threshold: float,
        crew: Crew,
        progress: Progress | None,
    ) -> None:
        self._line, self._ruler, self._threshold = line, ruler, threshold
        self._crew, self._progress = crew, progress
        self._train, self._test, self._full = train, test, full
        #: The value that counts at each point.
        self.points: dict[Position, Evaluation] = {}
        self.screened: dict[Position, Evaluation] = {}
        self.full: dict[Position, Evaluation] = {}
        self.test: dict[Position, Evaluation] = {}
        self._done = self._expected = 0

    def expect(self, inside: Sequence[int], rule: Refinement, worst: int, straight: int) -> None:
        """How many points progress counts to; refinement and confirmation may need more or fewer."""
        self._expected = len(self._line) + sum(inside)
        self._expected += rule.rounds * min(rule.gaps, sum(inside) + len(inside)) + max(straight - 2, 0)
        self._expected += 0 if self._full is None else min(worst + 2, self._expected)

    def _tell(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            highest = f"highest loss {self.loss(self.highest()):.4f}" if self.points else ""
            self._progress(self._done, max(self._expected, self._done), f"{text}  {highest}".rstrip())

    def base(self, inside: Sequence[int]) -> None:
        """Waypoints and the points equally spaced between them, on both sets."""
        positions = [Position(i, j / (count + 1)) for i, count in enumerate(inside) for j in range(count + 1)]
        self._measure([*positions, Position(self._line.segments, 0.0)], "screening" if self._full else "evaluating")

    def refine(self, rule: Refinement) -> None:
        for number in range(rule.most_rounds):
            gaps = [gap for gap in self._gaps() if self._ruler.share(gap) / 2 >= rule.finest]
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
        return -nan_highest(self.loss(position)), position

    def _worst(self, count: int) -> list[Position]:
        chosen: list[Position] = []
        for position in sorted(self.points, key=self._falling):
            if len(chosen) == count:
                break
            where = self._ruler.place(position).arc
            if all(abs(where - self._ruler.place(other).arc) >= _APART for other in chosen):
                chosen.append(position)
        return chosen

    def _is_near(self, evaluation: Evaluation) -> bool:
        margin = _NEAR * (evaluation.standard_error or 0.0)
        return not evaluation.loss + margin <= self._threshold

    def _is_wrong(self, evaluation: Evaluation) -> bool:
        return evaluation.not_finite > 0 or not math.isfinite(evaluation.loss) or evaluation.loss > self._threshold

    def _exceeded(self) -> bool:
        return any(self._is_wrong(evaluation) for evaluation in (self.full or self.points).values())

    def _gaps(self) -> list[Gap]:
        losses = self.screened or self.points
        return find_gaps({position: evaluation.loss for position, evaluation in losses.items()}, self._line.segments)

    def reasons(self) -> list[str]:
        """Why the path is not below the threshold; empty where it is."""
        found = []
        bad = sorted(p for p, e in self.points.items() if e.not_finite > 0 or not math.isfinite(e.loss))
        if bad:
            found.append(f"the training loss is not finite at {len(bad)} points, first at {self._ruler.place(bad[0])}")
        above = sorted((p for p, e in self.points.items() if e.loss > self._threshold), key=self._falling)
        finite = [p for p in above if math.isfinite(self.loss(p))]
        if finite:
            worst = finite[0]
            kind = "" if self.is_full(worst) else " on the screening subset"
            found.append(
                f"the training loss{kind} is {self.loss(worst):.4g} at {self._ruler.place(worst)}, above the threshold "
                f"{self._threshold:g}, and above it at {len(above)} of {len(self.points)} points"
            )
        return found

    def resolution(self, inside: Sequence[int], rule: Refinement) -> dict[str, Any]:
        gaps = self._gaps()
        open_gaps = [gap for gap in gaps if gap.highest_end <= self._threshold < gap.estimate]
        return {
            "rule": "every waypoint and equally spaced points inside each segment; then, a round at a time, the gaps "
            "with the highest estimate of the loss inside (higher end + 2 |f''|/8 width^2) are halved; gaps are shares "
            "of the path's length",
            "fewest_interior_points": min(inside, default=0),
            "most_interior_points": max(inside, default=0),
            **asdict(rule),
            "widest_gap": max(map(self._ruler.share, gaps), default=0.0),
            "narrowest_gap": min(map(self._ruler.share, gaps), default=0.0),
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
                "all points on the screening subset; on all samples the endpoints, the worst points, all within "
                f"{_NEAR:g} standard errors of the threshold until one exceeds it, and the highest"
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


def nan_highest(value: float) -> float:
    return math.inf if math.isnan(value) else value
