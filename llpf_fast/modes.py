""""""

from __future__ import annotations

from llpf_fast.tick.rule import _RESIZING

from .settings import Settings


def leads_to_model(settings: Settings) -> bool:
    """Whether the mode needs a second model as the end of the path."""
    return settings.mode == "m2m"


def can_arrive(settings: Settings) -> bool:
    """Whether the mode has an end that a network of low loss can reach: origin, mean and infinity are none."""
    return settings.mode not in _RESIZING
