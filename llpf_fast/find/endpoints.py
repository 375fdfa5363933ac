"""``Endpoints``: start and destination of one search, checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat import FlatParameters, check_buffers
from ..flat.tensors import same_bits
from ..modes import MODES
from ..path.endpoint import load_endpoint
from ..types import StateDict

_NAMED = 4


class Endpoints:
    """The state dicts that a search goes between; :meth:`load` fits them to the module and checks them.

    Args:
        mode: a key of ``MODES``.
        radii: whether the settings give the spheres' radii, so that no model is to give them.
        move_frozen: parameters that do not train may differ, because they are moved.

    Attributes:
        start: complete state dict.
        destination: the model to go to (m2m), or one that lies on the spheres to go to; ``None`` for the other modes.
        destination_loss: the destination's loss on the screening set after :meth:`check_losses`; before, and where
            there is no model to go to, 0.

    Raises:
        LLPFError: a destination that is missing, or given where the mode takes none.
    """

    def __init__(
        self, mode: str, start: StateDict, destination: StateDict | None, *, radii: bool, move_frozen: bool
    ) -> None:
        self._to_model, self._move_frozen = MODES[mode].goal == "model", move_frozen
        self.start = dict(start)
        self.destination_loss = 0.0
        goal = MODES[mode].goal
        if destination is None:
            if goal == "model":
                raise LLPFError(f"mode {mode} needs a destination model")
            if goal == "sphere" and not radii:
                raise LLPFError(f"mode {mode} needs spheres: numbers in the settings, or a model on them")
        elif goal == "none":
            raise LLPFError(f"mode {mode} takes no destination model")
        elif radii:
            raise LLPFError("spheres are given twice, by numbers and by a model; leave one out")
        self.destination = None if destination is None else dict(destination)

    def load(self, flat: FlatParameters) -> Tensor | None:
        """Put the start's values into ``flat``; returns the destination's ``[N]``, where there is one.

        Afterwards ``start`` and ``destination`` have the module's names and dtypes (``load_endpoint``).

        Raises:
            LLPFError: a state that does not fit the module, or is not finite; two equal models; nothing that trains;
                buffers (``check_buffers``) or frozen parameters that differ between start and destination.
        """
        module = flat.module
        self.start = load_endpoint(self.start, module, "start")
        if self.destination is not None:
            self.destination = load_endpoint(self.destination, module, "destination")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise LLPFError(
                "every parameter of the model is frozen (requires_grad=False), so nothing can be trained: call "
                "requires_grad_(True) on what the path may change"
            )
        if self._to_model and self.destination is not None:
            check_buffers(self.start, self.destination, module)
            if not self._move_frozen:
                self._check_frozen(module, self.destination)
        extra = [name for name, value in module.state_dict(keep_vars=True).items() if not isinstance(value, Tensor)]
        if extra:
            warnings.warn(
                f"extra state of the model that is no tensor ({', '.join(extra)}) stays the model's own and is not in "
                "the path's files: give load_state_dict strict=False for them",
                stacklevel=2,
            )
        target = None if self.destination is None else flat.flatten(self.destination)
        flat.load(self.start)
        if self._to_model and target is not None and torch.equal(target, flat.data):
            raise LLPFError("start and destination have equal parameters: there is no path to find")
        return target

    def _check_frozen(self, module: nn.Module, destination: StateDict) -> None:
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        different = [name for name in frozen if not same_bits(self.start[name], destination[name])]
        if different:
            more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
            raise LLPFError(
                f"frozen parameters (requires_grad=False) differ between start and destination and would never arrive: "
                f"{', '.join(different[:_NAMED])}{more}; give both the same, or set layers.move_frozen: true"
            )

    def check_losses(
        self, loss: Callable[[Tensor, StateDict], float], start: Tensor, target: Tensor | None, threshold: float
    ) -> None:
        """LLPFError where an endpoint is above the threshold: ``loss(values [N], buffers)`` on the screening set."""
        points = [("start", start, self.start)]
        if self._to_model and target is not None and self.destination is not None:
            points.append(("destination", target, self.destination))
        for name, values, state in points:
            value = loss(values, state)
            if name == "destination":
                self.destination_loss = value
            if value > threshold:
                raise LLPFError(
                    f"the {name} itself has training loss {value:.4g} on the screening set, above the threshold "
                    f"{threshold:g}: train it further or raise the threshold"
                )
