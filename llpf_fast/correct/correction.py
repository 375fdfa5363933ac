"""The loss-constraint correction: train after a move until the loss is back under the threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import LLPFError
from ..flat import FlatParameters
from ..ops.loss_gate import LAST, MEAN
from .draw import Batches
from .loss import LossFunction, loss_of


@dataclass(frozen=True)
class Corrected:
    """What one correction did: gradient steps, mean loss of the window at its end, whether that met the threshold."""

    rounds: int
    loss: float
    met: bool
    #: False where the loss became NaN or infinite; the values are useless then.
    finite: bool = True


class Correction:
    """Trains ``flat.module`` in train mode; one iteration is draw, forward, loss, gate, backward, update.

    Args:
        flat: the module and its flat buffers.
        loss_fn: (model output, targets) -> scalar mean loss.
        batches: where batches come from.
        threshold, min_rounds, max_rounds: see :func:`llpf_fast.ops.loss_gate_`.
        lr, momentum, weight_decay, nesterov: of the fused update ``sgd_``; ignored with ``optimizer``.
        keep_momentum: carry the momentum buffer from one correction to the next.
        optimizer: any ``torch.optim`` optimiser over the module's parameters, instead of ``sgd_``.
    """

    def __init__(
        self,
        flat: FlatParameters,
        loss_fn: LossFunction,
        batches: Batches,
        *,
        threshold: float,
        min_rounds: int,
        max_rounds: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        keep_momentum: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self._flat, self._loss_fn, self._batches = flat, loss_fn, batches
        self._rule = {"threshold": threshold, "min_rounds": min_rounds, "max_rounds": max_rounds}
        self._optimizer = optimizer
        device = flat.data.device
        self._base_lr = torch.tensor(lr, dtype=torch.float64, device=device)
        self._lr = self._base_lr
        self._hyper = {
            "momentum": momentum,
            "dampening": 0.0,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        self._keep_momentum = keep_momentum
        self.momentum_buffer = torch.zeros_like(flat.data) if momentum and optimizer is None else None
        self._fresh = ops.gate_state(min_rounds, device=device)
        self._state = self._fresh.clone()

    @property
    def module(self) -> nn.Module:
        return self._flat.module

    @property
    def keeps_momentum(self) -> bool:
        """Whether a momentum buffer outlives a correction."""
        return self._keep_momentum and self.momentum_buffer is not None

    def scale_lr(self, scale: Tensor | None) -> None:
        """From now on the learning rate of every segment is ``lr`` times its factor; float64 ``[S]`` on the device.

        None goes back to ``lr`` for all.
        """
        self._lr = self._base_lr if scale is None else self._base_lr * scale

    def run(self, first_round: int, *, go_on: bool = False, stop_at_nan: bool = False) -> Corrected:
        """Train from round ``first_round`` of the stream until the gate closes.

        With ``go_on`` this continues the correction before: the momentum stays, the window begins anew. With
        ``stop_at_nan`` a loss that is not finite ends the correction (``finite`` is False) and raises nothing.

        Raises:
            LLPFError: the loss became NaN or infinite.
        """
        self._state.copy_(self._fresh)
        if self.momentum_buffer is not None and not (self._keep_momentum or go_on):
            self.momentum_buffer.zero_()
        self.module.train()
        rounds = 0
        while True:
            loss = self._iterate(first_round + rounds)
            rounds += 1
            if not math.isfinite(loss):
                if stop_at_nan:
                    return Corrected(rounds, loss, False, finite=False)
                raise LLPFError(
                    f"the training loss became {loss} in round {rounds} of the correction; "
                    "try a smaller correction.lr or a smaller step"
                )
            if self._state[LAST]:
                mean = float(self._state[MEAN])
                return Corrected(rounds, mean, mean <= self._rule["threshold"])

    def _iterate(self, round_: int) -> float:
        flat = self._flat
        inputs, targets = self._batches.draw(round_)
        flat.zero_grad()
        loss = loss_of(self.module, self._loss_fn, inputs, targets)
        if not loss.requires_grad:
            raise LLPFError(
                "the loss depends on no parameter that trains: are all frozen, or is there a detach in the loss?"
            )
        value = loss.detach()
        torch.ops.llpf_fast.loss_gate_.default(self._state, value, **self._rule)
        loss.backward()
        if self._optimizer is not None:
            self._optimizer.step()
            return float(value)
        flat.ensure_gradients()
        torch.ops.llpf_fast.sgd_.default(
            flat.data,
            flat.grad,
            self.momentum_buffer,
            self._lr,
            flat.table.segments,
            flat.table.chunks,
            self._state,
            None,
            None,
            None,
            **self._hyper,
        )
        return float(value)
