"""Arc length along a polyline, and how densely to look at first."""

from __future__ import annotations

import math
from collections.abc import Collection

from .polyline import Polyline, Position
from .records import Place
from .refinement import Gap

#: Of the path's length: no two neighbouring points are further apart before refinement. The closing segment of a path
#: may be a third of its length; counting points per segment instead would look there as rarely as between ticks.
SPACING = 1 / 64


class Ruler:
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

    def share(self, gap: Gap) -> float:
        """The gap's share (0..1) of the path's length."""
        return gap.width * self._lengths[gap.waypoint] / self._sum

    def interior(self) -> list[int]:
        """Points inside each segment: one less than a power of two, so that halving gaps meets no point twice."""
        counts = []
        for length in self._lengths:
            pieces = 2
            while length / pieces > SPACING * self._sum:
                pieces *= 2
            counts.append(pieces - 1)
        return counts
