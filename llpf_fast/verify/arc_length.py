"""Arc length along a polyline: where a point lies, as a share of the path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..path.polyline import Change, Polyline, Position


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
    """Arc length along a polyline: of the parameters, or of the buffers where no parameter changes.

    Args:
        names: of the parameters; all other tensors are buffers. None: all tensors are parameters.
        unread: names of tensors on which no loss depends.

    Attributes:
        changes: what changes in each segment.
        total, buffers: L2 length of the whole path, of the parameters and of the buffers.

    Raises:
        LLPFError: a tensor changes its dtype or shape along the path, appears or vanishes.
    """

    def __init__(self, line: Polyline, names: Collection[str] | None, unread: Collection[str] = ()) -> None:
        self.changes: list[Change] = line.changes(names, unread)
        parameters = [change.parameters for change in self.changes]
        buffers = [change.buffers for change in self.changes]
        self.total, self.buffers = math.fsum(parameters), math.fsum(buffers)
        lengths = next((each for each in (parameters, buffers) if math.fsum(each) != 0), [1.0] * line.segments)
        # NaN or infinite values have no length: equally long segments still put the points in order.
        self._arcs = _cumulative(lengths if math.isfinite(math.fsum(lengths)) else [1.0] * line.segments)

    def location(self, position: Position) -> PathLocation:
        """``position`` with its ``arc``."""
        before = self._arcs[position.waypoint]
        if position.fraction:
            before += position.fraction * (self._arcs[position.waypoint + 1] - before)
        return PathLocation(*position, before / (self._arcs[-1] or 1.0))


def _cumulative(lengths: Sequence[float]) -> list[float]:
    """The sum of ``lengths`` before each waypoint."""
    return [0.0, *itertools.accumulate(lengths)]
