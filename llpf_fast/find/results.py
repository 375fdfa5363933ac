"""What a search tells its caller, while it runs and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TickProgress:
    """Where a search stands.

    ``distance`` is the share of the start's distance that is left (toward infinity: the norm's growth), ``steps`` the
    gradient steps of the whole search, ``seconds`` the time spent in it.
    """

    tick: int
    max_ticks: int
    loss: float
    rounds: int
    steps: int
    distance: float
    seconds: float


@dataclass(frozen=True)
class FindResult:
    """What a search did. ``sgd_steps`` and ``ticks`` count the whole search, ``seconds`` the time spent in it.

    ``ended`` is "arrived", "max_ticks", or "stuck": with adaptive pacing even the smallest step failed. ``notes`` are
    what a reader must know besides, a line each: layers of norm 0, which no norm sphere can be reached from.
    """

    folder: Path
    ticks: int
    sgd_steps: int
    seconds: float
    ended: str
    waypoints: int
    notes: tuple[str, ...] = ()

    @property
    def arrived(self) -> bool:
        return self.ended == "arrived"
