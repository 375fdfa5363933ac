"""``Ends``: start and destination of one search, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import check_finite
from .dialect import leads_to_model
from .settings import Settings

State = Mapping[str, Tensor]


class Ends:
    """The state dicts that a search goes between.

    Attributes:
        start: complete state dict.
        end: the model to go to (m2m), or one that lies on the spheres to go to; ``None`` for the other modes.
        end_loss: the destination's own loss on the screening set, once :meth:`check_losses` has seen it; else 0.

    Raises:
        LLPFError: an end that is missing, not wanted, or not finite.
    """

    def __init__(self, settings: Settings, start: State, destination: State | None) -> None:
        self._settings = settings
        self.start = dict(start)
        self.end_loss = 0.0
        check_finite(self.start, "start")
        self.end = self._checked(destination)

    def _checked(self, destination: State | None) -> dict[str, Tensor] | None:
        settings = self._settings
        if destination is None:
            if leads_to_model(settings):
                raise LLPFError("mode m2m needs a destination model")
            if settings.mode.endswith("-sphere") and not settings.spheres:
                raise LLPFError(f"mode {settings.mode} needs spheres: numbers in the settings, or a model on them")
            return None
        if not leads_to_model(settings) and not settings.mode.endswith("-sphere"):
            raise LLPFError(f"mode {settings.mode} takes no destination model")
        if settings.spheres:
            raise LLPFError("spheres are given twice, by numbers and by a model; leave one out")
        state = dict(destination)
        check_finite(state, "destination")
        return state

    def load(self, flat: FlatParameters) -> Tensor | None:
        """Put the start into ``flat``; the destination's values ``[N]``, where there is one.

        Raises:
            LLPFError: a state of another architecture; two equal models.
        """
        like = None if self.end is None else flat.flatten(self.end)
        flat.load(self.start)
        if leads_to_model(self._settings) and like is not None and torch.equal(like, flat.data):
            raise LLPFError("start and destination have equal parameters: there is no path to find")
        return like

    def check_losses(self, loss: Callable[[Tensor, State], float], start: Tensor, like: Tensor | None) -> None:
        """LLPFError where an end is itself above the threshold: ``loss(values [N], buffers)`` on the screening set."""
        ends = [("start", start, self.start)]
        if leads_to_model(self._settings) and like is not None and self.end is not None:
            ends.append(("destination", like, self.end))
        for name, values, state in ends:
            found = loss(values, state)
            if name == "destination":
                self.end_loss = found
            if found > self._settings.threshold:
                raise LLPFError(
                    f"the {name} itself has training loss {found:.4g} on the screening set, above the threshold "
                    f"{self._settings.threshold:g}: train it further or raise the threshold"
                )
