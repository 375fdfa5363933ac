"""``Endpoints``: start and destination of one search, checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat import FlatParameters, check_buffers
from ..flat.tensors import same_bits
from ..modes import leads_to_model
from ..path.endpoint import load_endpoint
from ..settings import Settings
from ..types import StateDict

_LISTED = 4


class Endpoints:
    """The state dicts that a search goes between. :meth:`load` fits them to the module and checks them.

    Attributes:
        start: complete state dict.
        end: the model to go to (m2m), or one that lies on the spheres to go to; ``None`` for the other modes.
        end_loss: the destination's own loss on the screening set, once :meth:`check_losses` has seen it; else 0.

    Raises:
        LLPFError: an end that is missing or not wanted.
    """

    def __init__(self, settings: Settings, start: StateDict, destination: StateDict | None) -> None:
        self._settings = settings
        self.start = dict(start)
        self.end_loss = 0.0
        self.end = self._checked(destination)

    def _checked(self, destination: StateDict | None) -> dict[str, Tensor] | None:
        settings = self._settings
        if destination is None:
            if leads_to_model(settings):
                raise LLPFError("mode m2m needs a destination model")
            if settings.mode.endswith("-sphere") and not settings.spheres.radii:
                raise LLPFError(f"mode {settings.mode} needs spheres: numbers in the settings, or a model on them")
            return None
        if not leads_to_model(settings) and not settings.mode.endswith("-sphere"):
            raise LLPFError(f"mode {settings.mode} takes no destination model")
        if settings.spheres.radii:
            raise LLPFError("spheres are given twice, by numbers and by a model; leave one out")
        return dict(destination)

    def load(self, flat: FlatParameters) -> Tensor | None:
        """Put the start into ``flat``; the destination's values ``[N]``, where there is one.

        From here on ``start`` and ``end`` have the module's names and dtypes (``load_endpoint``).

        Raises:
            LLPFError: a state that does not fit the module, or is not finite; two equal models; nothing that trains;
                buffers (``check_buffers``) or frozen parameters of start and destination between which no way leads.
        """
        module = flat.module
        self.start = load_endpoint(self.start, module, "start")
        if self.end is not None:
            self.end = load_endpoint(self.end, module, "destination")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise LLPFError(
                "every parameter of the model is frozen (requires_grad=False), so nothing can be trained: call "
                "requires_grad_(True) on what the path may change"
            )
        if leads_to_model(self._settings) and self.end is not None:
            check_buffers(self.start, self.end, module)
            self._check_frozen(module, self.end)
        extra = [name for name, value in module.state_dict(keep_vars=True).items() if not isinstance(value, Tensor)]
        if extra:
            warnings.warn(
                f"extra state of the model that is no tensor ({', '.join(extra)}) stays the model's own and is not in "
                "the path's files: give load_state_dict strict=False for them",
                stacklevel=2,
            )
        like = None if self.end is None else flat.flatten(self.end)
        flat.load(self.start)
        if leads_to_model(self._settings) and like is not None and torch.equal(like, flat.data):
            raise LLPFError("start and destination have equal parameters: there is no path to find")
        return like

    def _check_frozen(self, module: nn.Module, end: StateDict) -> None:
        if self._settings.layers.move_frozen:
            return
        still = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        different = [name for name in still if not same_bits(self.start[name], end[name])]
        if different:
            more = f" and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
            raise LLPFError(
                f"frozen parameters (requires_grad=False) differ between start and destination and would never arrive: "
                f"{', '.join(different[:_LISTED])}{more}; give both the same, or set layers.move_frozen: true"
            )

    def check_losses(self, loss: Callable[[Tensor, StateDict], float], start: Tensor, like: Tensor | None) -> None:
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
