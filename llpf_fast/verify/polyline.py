"""The polyline through a path's waypoints, read from wherever they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, float64

from ..errors import LLPFError

State = Mapping[str, Tensor]
#: Waypoints kept in memory, for walks along the path by a few threads.
_CACHED = 8


class Position(NamedTuple):
    """A place on the polyline: ``fraction`` (0 <= fraction < 1) of the way from waypoint ``waypoint`` to the next."""

    waypoint: int
    fraction: float


class Polyline:
    """The straight segments between consecutive waypoints.

    Args:
        waypoints: at least one; each a state dict, a callable that returns one, or an object whose ``load()`` does.

    Raises:
        LLPFError: there is no waypoint.
    """

    def __init__(self, waypoints: Sequence[Any]) -> None:
        if not waypoints:
            raise LLPFError("the path has no waypoints: there is nothing to certify")
        self._waypoints = waypoints
        self._load = functools.lru_cache(maxsize=_CACHED)(self._read)

    def __len__(self) -> int:
        return len(self._waypoints)

    @property
    def segments(self) -> int:
        return len(self) - 1

    def _read(self, index: int) -> State:
        waypoint = self._waypoints[index]
        if isinstance(waypoint, Mapping):
            return waypoint
        load: Callable[[], State] = getattr(waypoint, "load", waypoint)
        return load()

    def state(self, position: Position) -> State:
        """The state dict there; at a waypoint the stored one itself."""
        if position.fraction == 0:
            return self._load(position.waypoint)
        return interpolate(self._load(position.waypoint), self._load(position.waypoint + 1), position.fraction)

    def straight(self, fraction: float) -> State:
        """The state dict at ``fraction`` of the straight line from the first waypoint to the last."""
        first, last = self._load(0), self._load(len(self) - 1)
        return first if fraction == 0 else last if fraction == 1 else interpolate(first, last, fraction)

    def lengths(self, names: Collection[str] | None) -> list[float]:
        """L2 length of each segment over the tensors ``names`` (None: all floating ones), summed in float64."""
        return [distance(self._load(i), self._load(i + 1), names) for i in range(self.segments)]

    def straight_length(self, names: Collection[str] | None) -> float:
        return distance(self._load(0), self._load(len(self) - 1), names)


def interpolate(a: State, b: State, fraction: float) -> dict[str, Tensor]:
    """a + fraction (b - a) for floating tensors, in float64 (rounded once, by whoever stores it); others are a's."""
    return {
        name: value.to(float64).lerp(b[name].to(float64), fraction) if value.is_floating_point() else value
        for name, value in a.items()
    }


def distance(a: State, b: State, names: Collection[str] | None) -> float:
    squares = [
        float((b[name].to(float64) - value.to(float64)).square().sum())
        for name, value in a.items()
        if value.is_floating_point() and (names is None or name in names)
    ]
    return math.sqrt(math.fsum(squares))
