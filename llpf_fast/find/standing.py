"""``Standing``: the plain values that the coming ticks depend on, as they go into a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Standing:
    """Where a search stands.

    ``tick`` counts attempts; ``point`` is the tick whose result the buffer holds (less than ``tick`` after a rollback);
    ``recorded`` is the tick of the last waypoint. ``leg`` is 0 while the first of two legs shrinks the layers.
    """

    tick: int = 0
    point: int = 0
    recorded: int = 0
    rounds: int = 0
    leg: int = 1
    leg_began: int = 0
    phase: int = 0
    since: int = 0
    pace: float = 1.0
    seconds: float = 0.0
    #: Share of the initial distance that every segment has left, and its variance, after the tick ``point``.
    shares: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
