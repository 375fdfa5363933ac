"""``Standing``: the plain values that the coming ticks depend on, as they go into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import LLPFError


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
    #: Of every segment after the tick ``point``: distance, share of the initial distance, variance.
    distances: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    #: The whole network's distance, and the loss its correction ended with (None at the start).
    distance: float = 0.0
    loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Standing:
        """The reverse; LLPFError where a checkpoint of another version holds other fields."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(known ^ set(state)):
            raise LLPFError(
                f"the checkpoint was written by another version of llpf_fast (it differs in {', '.join(odd)}): "
                "finish the run with that version, or begin a new one"
            )
        return cls(**state)
