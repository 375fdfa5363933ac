"""What a verification covers: the closed and the open pieces of a path's segments."""

from __future__ import annotations

from dataclasses import dataclass

from ..path.polyline import Position


@dataclass(frozen=True)
class Piece:
    """A part of the segment from waypoint ``waypoint`` to the next: the fractions ``start`` to ``end`` (0..1) of it.

    ``start_bound`` and ``end_bound`` bound the mean loss (by the estimator in use) from above: at every point of the
    piece it is at most the value there of the straight line between the two. Infinite where nothing is known.
    """

    waypoint: int
    start: float
    end: float
    start_bound: float
    end_bound: float

    @property
    def bound(self) -> float:
        """The larger of the two bounds, which holds on the whole piece."""
        return max(self.start_bound, self.end_bound)


@dataclass(frozen=True)
class Coverage:
    """How far a path was shown to stay at most at the threshold.

    ``closed`` and ``open`` together cover every changing segment exactly once, unless a violation ended the work early.

    Attributes:
        closed: pieces whose bounds are at most the threshold.
        open: pieces about which nothing was shown; never counted as closed.
        violation: a point whose loss is above the threshold, or not finite; None where none was met.
        evaluations, precise_evaluations: samples times pieces or points that were computed, in all and in float64.
        seconds: time that it took.
    """

    closed: list[Piece]
    open: list[Piece]
    violation: Position | None
    evaluations: int
    precise_evaluations: int
    seconds: float
