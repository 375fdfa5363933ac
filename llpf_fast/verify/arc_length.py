"""Arc length along a polyline, and the points of each segment that are evaluated first."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..path.polyline import Polyline, Position
from .refinement import Gap

#: Largest distance between neighbouring points before refinement, less their random shifts, as a share of the path's
#: length. Not a number of points a segment: the closing segment may be a third of the path, and needs as dense points.
SPACING = 1 / 64
#: Points inside every segment that changes anything: fewer show no curvature.
_FEWEST = 3
#: Largest random shift of a single point, as a share of the spacing: a path could be made to be low at equally spaced
#: points.
_SHIFT = 1 / 8
#: Smallest distance of a point from a waypoint or the middle, as a share of the spacing: points that coincide show no
#: curvature.
_CLOSEST = 1 / 16


@dataclass(frozen=True)
class PathLocation:
    """A point of a path: ``fraction`` (0 <= fraction < 1) of the way from waypoint ``waypoint`` to the next.

    ``arc`` is the share (0..1) of the polyline's length that lies before it.
    """

    waypoint: int
    fraction: float
    arc: float

    def __str__(self) -> str:
        return f"waypoint {self.waypoint}" + (f" + {self.fraction:g}" if self.fraction else "")


class ArcLength:
    """Arc length along a polyline.

    Parameters and buffers are measured separately, because they have different scales (weights beside BatchNorm's
    variances). A segment's share of the path is the larger of its shares of the two lengths.

    Args:
        names: of the parameters; all other tensors are buffers. None: all tensors are parameters.

    Attributes:
        changes: what changes in each segment.
        total, buffers: L2 length of the whole path, of the parameters and of the buffers.

    Raises:
        LLPFError: a tensor changes its dtype or shape along the path, appears or vanishes.
    """

    def __init__(self, line: Polyline, names: Collection[str] | None) -> None:
        self.changes = line.changes(names)
        parameters = [change.parameters for change in self.changes]
        buffers = [change.buffers for change in self.changes]
        self.total, self.buffers = math.fsum(parameters), math.fsum(buffers)
        equal = [1 / max(line.segments, 1)] * line.segments
        # NaN or infinite values have no length: equally long segments still put the points in order.
        kinds = [
            [length / total for length in lengths] if math.isfinite(total) else equal
            for lengths, total in ((parameters, self.total), (buffers, self.buffers))
            if total != 0
        ]
        self._shares = [max(shares) for shares in zip(*kinds, strict=True)] if kinds else equal
        self._arcs = _cumulative(kinds[0] if kinds else equal)
        self._along = _cumulative(self._shares)

    def location(self, position: Position) -> PathLocation:
        """``position`` with its ``arc``, by the parameters' length (by the buffers' where no parameter changes)."""
        return PathLocation(*position, _value_at(self._arcs, position) / (self._arcs[-1] or 1.0))

    def distance_along(self, position: Position) -> float:
        """The length before ``position``, as the sum of the segments' shares (1 to 2 at the last waypoint)."""
        return _value_at(self._along, position)

    def gap_share(self, gap: Gap) -> float:
        """The gap's share (0..1) of the path's length."""
        return gap.width * self._shares[gap.waypoint]

    def interior_points(self, count: int | None, generator: random.Random) -> list[list[float]]:
        """The points inside each segment, as ascending fractions of it; none where nothing changes.

        ``count`` points a segment (None: as many as a distance of ``SPACING`` takes), at least 3. One is the middle;
        the others are equally spaced from a random offset on, and each is shifted a little at random.
        """
        return [
            _spread(max(self._count(share) if count is None else count, _FEWEST), generator) if change.any else []
            for share, change in zip(self._shares, self.changes, strict=True)
        ]

    def _count(self, share: float) -> int:
        pieces = 2
        while share / pieces > SPACING:
            pieces *= 2
        return pieces - 1


def _spread(count: int, generator: random.Random) -> list[float]:
    """The middle of a segment and ``count`` - 1 points around it, as ascending fractions."""
    pieces, offset = count - 1, generator.random()
    points = [pieces / 2]
    for piece in range(pieces):
        shifted = piece + offset + generator.uniform(-_SHIFT, _SHIFT)
        point = min(max(shifted, _CLOSEST), pieces - _CLOSEST)
        if abs(point - points[0]) < _CLOSEST:
            point = points[0] + math.copysign(_CLOSEST, point - points[0])
        points.append(point)
    return [point / pieces for point in sorted(points)]


def _cumulative(shares: Sequence[float]) -> list[float]:
    """The sum of ``shares`` before each waypoint."""
    return [0.0, *itertools.accumulate(shares)]


def _value_at(sums: Sequence[float], position: Position) -> float:
    before = sums[position.waypoint]
    if position.fraction:
        before += position.fraction * (sums[position.waypoint + 1] - before)
    return before
