"""Which layers move at a tick: stages by tick or by arrival, written out or found from the data flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.data_flow import data_flow_order
from ..tick import match_layers
from .settings import Settings


@dataclass(frozen=True)
class Phase:
    """A resolved stage: ``active`` has one entry a segment; it begins after ``start`` ticks or at ``distance``."""

    active: tuple[bool, ...]
    start: int | None = None
    ticks: int | None = None
    distance: float | None = None


class Schedule:
    """The phase that each tick belongs to. ``phase`` and ``since`` are all there is to remember for a resume.

    Args:
        phases: at least one; the first begins at once.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = tuple(phases)
        self.phase = 0
        #: Ticks done when the present phase began.
        self.since = 0

    @property
    def active(self) -> tuple[bool, ...]:
        return self._phases[self.phase].active

    @property
    def last(self) -> bool:
        return self.phase == len(self._phases) - 1

    def advance(self, done: int, shares: Sequence[float], moving: Sequence[bool]) -> bool:
        """Whether another phase begins after ``done`` ticks.

        Args:
            shares: for every segment the share of its initial distance that is left.
            moving: which segments the present phase really moves; the others never come closer.
        """
        began = self.phase
        while not self.last:
            coming = self._phases[self.phase + 1]
            by_tick = coming.start is not None and done >= coming.start
            by_tick |= coming.ticks is not None and done - self.since >= coming.ticks
            left = max((s for s, m in zip(shares, moving, strict=True) if m), default=0.0)
            if not (by_tick or (coming.distance is not None and left <= coming.distance)):
                break
            self.phase += 1
            self.since = done
            if not (coming.start is not None and done >= coming.start):
                # Shares belong to the layers of the phase that just ended; the next one's are looked at next time.
                break
        return self.phase != began


def make_schedule(
    settings: Settings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> Schedule:
    """The schedule that ``settings`` ask for.

    Args:
        may_move: which segments the rule moves at all, once they are active.
        forward: runs the module once, for the data flow.

    Raises:
        LLPFError: a pattern that matches no layer; a stage in which nothing would move.
    """
    if settings.schedule == "data-flow":
        return Schedule(_data_flow(settings, flat, may_move, forward))
    names = flat.table.names
    phases = []
    for i, stage in enumerate(settings.stages):
        active = match_layers(names, stage.layers, f"stages[{i}].layers pattern")
        if not any(a and m for a, m in zip(active, may_move, strict=True)):
            raise LLPFError(f"stages[{i}] moves nothing: the rule keeps all of its layers ({', '.join(stage.layers)})")
        phases.append(Phase(tuple(active), stage.start, None, stage.distance))
    return Schedule(phases)


def _data_flow(
    settings: Settings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> list[Phase]:
    phases: list[Phase] = []
    seen: set[str] = set()
    for group in data_flow_order(flat.module, forward).groups:
        seen |= set(group)
        # A cut attention tensor has one segment a projection, called NAME[query] and so on.
        active = tuple(name.partition("[")[0] in seen and m for name, m in zip(flat.table.names, may_move, strict=True))
        if active != (phases[-1].active if phases else (False,) * len(active)):
            phases.append(Phase(active, None, settings.data_flow.ticks, settings.data_flow.distance))
    if not phases:
        raise LLPFError("schedule data-flow moves nothing: the rule keeps every layer")
    return phases
