"""Adaptive pacing: the step controller, the average of a correction's points, the point to go back to."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..correct import CorrectionResult
from ..correct.correction import Trainer
from ..flat import FlatParameters
from ..flat.buffers import all_buffers, set_buffers
from ..settings import PacingSettings

#: Factors of the step after a short correction, a long one and a failure.
_GROW, _SHRINK, _BACK = 1.3, 0.8, 0.5


class StepController:
    """Factor ``scale`` of the step's length (ours); a checkpoint needs nothing else.

    After a short correction the step grows: the point was in the low-loss space or close to it. After a long one it
    shrinks. After a failure (threshold not met, or a loss on the screening set that is too high) the tick is taken back
    and tried again with a smaller step.
    """

    def __init__(self, settings: PacingSettings, window: int) -> None:
        self._settings = settings
        # A correction never takes fewer steps than its window.
        self._short = max(settings.target_steps, window)
        self.scale = 1.0

    def succeeded(self, sgd_steps: int) -> None:
        """After a correction of that many gradient steps whose waypoint passed."""
        if sgd_steps <= self._short:
            self._set(self.scale * _GROW)
        elif sgd_steps > 2 * self._short:
            self._set(self.scale * _SHRINK)

    def failed(self) -> bool:
        """After a failure: whether there is a smaller step to try; False means the search is stuck."""
        if self.scale <= self._settings.min_scale:
            return False
        self._set(self.scale * _BACK)
        return True

    def _set(self, scale: float) -> None:
        self.scale = min(max(scale, self._settings.min_scale), self._settings.max_scale)


class IterateAverage:
    """Running mean of points and their losses, later ones weighing more (polynomial-decay averaging, arXiv 1212.1824).

    With ``power`` e, point k of k gets the share (e + 1) / (k + e), so about the last 1 / (e + 1) of them count. At a
    constant rate gradient descent fluctuates around a minimum, and the mean lies nearer to it. Memory: one buffer
    ``[N]``, and none where ``power`` is None.

    Attributes:
        values: the mean ``[N]``; None where nothing is averaged.
    """

    def __init__(self, like: Tensor, power: float | None) -> None:
        self._power = 0.0 if power is None else power
        self._count = 0
        self.values = None if power is None else torch.zeros_like(like)
        self._loss = 0.0

    def clear(self) -> None:
        """Begin anew: the next point counts alone."""
        self._count = 0

    @torch.no_grad()
    def add(self, point: Tensor, corrected: CorrectionResult, threshold: float) -> CorrectionResult:
        """Add ``point [N]``, the result of ``corrected``; returns that with the mean loss and whether it is met."""
        assert self.values is not None
        self._count += 1
        share = (self._power + 1) / (self._count + self._power)
        if self._count == 1:
            self.values.copy_(point)
            self._loss = corrected.loss
        else:
            self.values.lerp_(point, share)
            self._loss += share * (corrected.loss - self._loss)
        return replace(corrected, loss=self._loss, met=self._loss <= threshold)


class AcceptedPoint:
    """A copy of the last accepted point: values, the module's buffers, and what outlives a correction.

    That is the momentum where it is kept from one correction to the next, and the state of a torch optimiser.

    Attributes:
        values: ``[N]``, projected.
    """

    def __init__(self, flat: FlatParameters, trainer: Trainer, optimizer: torch.optim.Optimizer | None) -> None:
        self._flat, self._trainer, self._optimizer = flat, trainer, optimizer
        self.values = torch.zeros_like(flat.data)
        #: All buffers by name; None where one is registered but not made yet.
        self._buffers: dict[str, Tensor | None] = {}
        self._momentum: Tensor | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The saved buffers by name."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    @torch.no_grad()
    def save(self) -> None:
        """Copy the present point."""
        self.values.copy_(self._flat.data)
        self._buffers = all_buffers(self._flat.module)
        if self._trainer.keeps_momentum:
            assert self._trainer.momentum_buffer is not None
            self._momentum = self._trainer.momentum_buffer.clone()
        if self._optimizer is not None:
            self._optimizer_state = copy.deepcopy(self._optimizer.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to what was saved."""
        self._flat.ensure()
        self._flat.data.copy_(self.values)
        set_buffers(self._flat.module, self._buffers)
        if self._momentum is not None:
            assert self._trainer.momentum_buffer is not None
            self._trainer.momentum_buffer.copy_(self._momentum)
        if self._optimizer is not None and self._optimizer_state is not None:
            self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_state))
