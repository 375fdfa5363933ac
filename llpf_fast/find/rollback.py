"""``Rollback``: the last accepted point, to return to when a tick fails."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatParameters
from ..flat.buffers import all_buffers, set_buffers
from .trainer import Trainer


class Rollback:
    """Keeps one point: the caller's waypoint buffer ``[N]`` (no second copy), buffers and the optimiser's state.

    Memory beyond that buffer: the module's buffers, and the momentum or optimiser state where it outlives a correction.
    """

    def __init__(self, flat: FlatParameters, trainer: Trainer, optimizer: torch.optim.Optimizer | None) -> None:
        self._flat, self._trainer, self._optimizer = flat, trainer, optimizer
        #: All buffers by name; None where one is registered but not made yet.
        self._buffers: dict[str, Tensor | None] = {}
        self._momentum: Tensor | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers that were kept, by name."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def keep(self) -> None:
        """Remember everything but the values as they are now."""
        self._buffers = all_buffers(self._flat.module)
        if self._trainer.keeps_momentum:
            assert self._trainer.momentum_buffer is not None
            self._momentum = self._trainer.momentum_buffer.clone()
        if self._optimizer is not None:
            self._optimizer_state = copy.deepcopy(self._optimizer.state_dict())

    @torch.no_grad()
    def back(self, values: Tensor) -> None:
        """Return to ``values [N]`` and to what was kept with them."""
        self._flat.ensure()
        self._flat.data.copy_(values)
        set_buffers(self._flat.module, self._buffers)
        if self._momentum is not None:
            assert self._trainer.momentum_buffer is not None
            self._trainer.momentum_buffer.copy_(self._momentum)
        if self._optimizer is not None and self._optimizer_state is not None:
            self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_state))
