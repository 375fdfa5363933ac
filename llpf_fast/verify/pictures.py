"""The points of a certificate's picture: the path, the test set, the straight line. No verdict rests on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..path.polyline import Polyline, Position
from .arc_length import PathLocation
from .evaluator import Evaluation, Evaluator
from .worker_pool import WorkerPool

#: Samples on which the straight line is drawn.
STRAIGHT_SAMPLES = 2_000
#: Points on the path and of the test set that are evaluated whatever they cost.
_FEWEST_POINTS, _FEWEST_ON_TEST = 5, 3
#: Most points on the path: more cannot be told apart in a picture.
_MOST_POINTS = 400


@dataclass(frozen=True)
class PathPoint:
    """One evaluated point. Losses are means over samples and may be NaN; what was not evaluated is None.

    ``train_loss`` is evaluated on ``train_samples`` samples. ``standard_error`` is that of ``train_loss``, None where
    all samples were evaluated.
    """

    at: PathLocation
    train_loss: float
    train_samples: int
    standard_error: float | None = None
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


def picture_positions(segments: int, changing: Sequence[int], most: int) -> list[Position]:
    """At most ``most`` (5 to 400) points to draw, in order: the endpoints, waypoints, midpoints, then quarters.

    ``changing``: first waypoints of the segments that change. A kind that does not fit is thinned out evenly.
    """
    left = min(max(most, _FEWEST_POINTS), _MOST_POINTS)
    endpoints = [Position(i, 0.0) for i in sorted({0, segments})]
    kinds = [
        endpoints,
        [Position(i, 0.0) for i in range(1, segments)],
        [Position(i, 0.5) for i in changing],
        [Position(i, fraction) for i in changing for fraction in (0.25, 0.75)],
    ]
    chosen: list[Position] = []
    for kind in kinds:
        chosen += _thinned(kind, left - len(chosen))
    return sorted(chosen)


def test_positions(positions: Sequence[Position], most: int) -> list[Position]:
    """The waypoints among ``positions`` (ascending), and of each segment the point nearest to its middle, thinned out
    evenly to at most ``most`` (at least 3)."""
    nearest: dict[int, Position] = {}
    for position in positions:
        other = nearest.get(position.waypoint)
        if position.fraction and (other is None or abs(position.fraction - 0.5) < abs(other.fraction - 0.5)):
            nearest[position.waypoint] = position
    drawn = [p for p in positions if not p.fraction or nearest[p.waypoint] == p]
    return _thinned(drawn, max(most, _FEWEST_ON_TEST))


def _thinned(items: Sequence[Position], most: int) -> list[Position]:
    """``most`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[len(items) // 2 :][: max(most, 0)])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def straight_line(
    line: Polyline,
    train: Evaluator,
    test: Evaluator | None,
    count: int,
    pool: WorkerPool,
    report: Callable[[str], None],
) -> list[LinePoint]:
    """``count`` equally spaced points of the straight line between the endpoints, on at most 2,000 samples each."""
    if count < 2 or line.segments < 1:
        return []
    few_train = train.on_few(STRAIGHT_SAMPLES, 0)
    few_test = None if test is None else test.on_few(STRAIGHT_SAMPLES, 0)

    def measure(fraction: float) -> LinePoint:
        state = line.straight(fraction)
        on_train, on_test = few_train(state), None if few_test is None else few_test(state)
        accuracy = None if on_test is None else on_test.accuracy
        return LinePoint(
            fraction, on_train.loss, on_train.accuracy, None if on_test is None else on_test.loss, accuracy
        )

    points = []
    for point in pool.map(measure, [i / (count - 1) for i in range(count)]):
        report("straight line")
        points.append(point)
    return points


def evaluate_all(
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation],
    line: Polyline,
    positions: Sequence[Position],
    pool: WorkerPool,
) -> dict[Position, Evaluation]:
    """The evaluation of each of ``positions``."""
    results = pool.map(lambda position: evaluate(line.state(position)), positions)
    return dict(zip(positions, results, strict=True))
