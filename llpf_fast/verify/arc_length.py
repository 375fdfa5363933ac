"""Arc length along a polyline, and how densely to look at first."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..path.polyline import Polyline, Position
from .refinement import Gap

#: Of the path's length: what neighbouring points are apart before refinement, but for their random shifts. The closing
#: segment of a path may be a third of its length; counting points per segment instead would look there as rarely as
#: between ticks.
SPACING = 1 / 64
#: Inside every segment that changes anything: fewer show no curvature.
_FEWEST = 3
#: How far a point is shifted by itself, as a share of the distance between neighbouring points: equally spaced places
#: a path could be made for.
_OWN = 1 / 8
#: Likewise, how close a point may come to a waypoint or the middle: from points that meet no curvature can be told.
_ASIDE = 1 / 16


class ArcLength:
    """Arc length along a polyline.

    Parameters and buffers have scales of their own (weights beside BatchNorm's variances), so each is measured by
    itself, and a segment's share of the path is the larger of its shares of the two lengths.

    Raises:
        LLPFError: a tensor changes its dtype or shape along the path, appears or vanishes.
    """

    def __init__(self, line: Polyline, names: Collection[str] | None) -> None:
        #: What changes in each segment.
        self.changes = line.changes(names)
        parameters = [change.parameters for change in self.changes]
        buffers = [change.buffers for change in self.changes]
        #: L2 length of the whole path, of the parameters and of all other tensors.
        self.total, self.buffers = math.fsum(parameters), math.fsum(buffers)
        equal = [1 / max(line.segments, 1)] * line.segments
        # A kind with NaN or infinities has no length: equally long segments still put the points in order.
        kinds = [
            [length / total for length in lengths] if math.isfinite(total) else equal
            for lengths, total in ((parameters, self.total), (buffers, self.buffers))
            if total != 0
        ]
        self._shares = [max(shares) for shares in zip(*kinds, strict=True)] if kinds else equal
        self._arcs = _sums(kinds[0] if kinds else equal)
        self._along = _sums(self._shares)

    def place(self, position: Position) -> PathLocation:
        """Where that is, its ``arc`` by the parameters' length (by the buffers' where no parameter changes)."""
        return PathLocation(*position, _at(self._arcs, position) / (self._arcs[-1] or 1.0))

    def along(self, position: Position) -> float:
        """How much of the path lies before, as the sum of the segments' shares (1 to 2 at its end)."""
        return _at(self._along, position)

    def share(self, gap: Gap) -> float:
        """The gap's share (0..1) of the path's length."""
        return gap.width * self._shares[gap.waypoint]

    def inner(self, interior: int | None, chance: random.Random) -> list[list[float]]:
        """Where to look inside each segment, as fractions of it in ascending order.

        ``interior`` points (None: as many as a distance of ``SPACING`` takes), at least 3; none where nothing changes.
        One is the middle; the others are equally spaced, begin at random, and are shifted a little at random each.
        """
        return [
            _spread(max(self._count(share) if interior is None else interior, _FEWEST), chance) if change.any else []
            for share, change in zip(self._shares, self.changes, strict=True)
        ]

    def _count(self, share: float) -> int:
        pieces = 2
        while share / pieces > SPACING:
            pieces *= 2
        return pieces - 1


def _spread(count: int, chance: random.Random) -> list[float]:
    """The middle of a segment, and one place less than ``count`` around it, as fractions in ascending order."""
    pieces, begin = count - 1, chance.random()
    places = [pieces / 2]
    for piece in range(pieces):
        place = min(max(piece + begin + chance.uniform(-_OWN, _OWN), _ASIDE), pieces - _ASIDE)
        if abs(place - places[0]) < _ASIDE:
            place = places[0] + math.copysign(_ASIDE, place - places[0])
        places.append(place)
    return [place / pieces for place in sorted(places)]


def _sums(shares: Sequence[float]) -> list[float]:
    """What lies before each waypoint."""
    return [0.0, *itertools.accumulate(shares)]


def _at(sums: Sequence[float], position: Position) -> float:
    before = sums[position.waypoint]
    if position.fraction:
        before += position.fraction * (sums[position.waypoint + 1] - before)
    return before


@dataclass(frozen=True)
class PathLocation:
    """Where on a path: ``fraction`` of the way from waypoint ``waypoint`` to the next; ``arc`` is the share (0..1) of
    the polyline's length that lies before it."""

    waypoint: int
    fraction: float
    arc: float

    def __str__(self) -> str:
        return f"waypoint {self.waypoint}" + (f" + {self.fraction:g}" if self.fraction else "")
