"""``Coverage``: which pieces of a path are closed, which are open, and a point above the threshold, if one was met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..path.polyline import Position

#: Why a piece is open. "width": it has the finest width. "rounding": its bound no longer shrinks with its width.
#: "budget": the evaluations or the time ended. "samples": the chosen samples are too few to tell.
Cause = Literal["width", "rounding", "budget", "samples"]


@dataclass(frozen=True)
class Piece:
    """The part from ``start`` to ``end`` (fractions, 0 <= start < end <= 1) of segment ``waypoint`` -> next waypoint.

    Attributes:
        start_bound, end_bound: upper bounds of the loss at the two ends; between them the loss is at most their chord.
            Infinite where nothing is known.
        cause: why the piece is open; None: it is closed.
    """

    waypoint: int
    start: float
    end: float
    start_bound: float
    end_bound: float
    cause: Cause | None = None

    @property
    def bound(self) -> float:
        """An upper bound of the loss on the whole piece."""
        return max(self.start_bound, self.end_bound)


@dataclass(frozen=True)
class Coverage:
    """What is known of the segments that change.

    Attributes:
        closed: pieces on which the loss is at most the threshold, in the order of the path.
        open: all the rest of these segments, highest bound first. A piece that is open is never counted as closed.
        violation: a point above the threshold. It ended the work: what was not closed by then is open, with any cause.
        evaluations: of one sample each, on a piece or at a point.
        precise_evaluations: how many of these were in float64.
        seconds: of the clock.
    """

    closed: list[Piece]
    open: list[Piece]
    violation: Position | None
    evaluations: int
    precise_evaluations: int
    seconds: float
