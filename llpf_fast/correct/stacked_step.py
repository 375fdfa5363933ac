"""``StackedStep``: one iteration of many corrections with ``sgd_``, in which the host decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..batches.loss import LossFunction
from ..batches.sampling import IndexedBatches
from ..flat import FlatParameters
from ..ops.loss_gate import OPEN
from .stack import Stack


class StackedStep:
    """Draw, forward, loss, gate, backward and update of the first rows of a stack, each with its own gate and round.

    A row whose gate is closed keeps every bit: parameters, momentum, buffers, counters. So a call may be repeated
    without a look at the gates, and may be captured into a CUDA graph.

    Args:
        flat: of one module of the architecture; only its layout counts.
        batches: where every row's batches come from, each at its own round.
        rows: capacity.
        threshold, ..., nesterov: see :class:`~llpf_fast.correct.Correction`.

    Attributes:
        state: of ``loss_gate_``, ``[K, 4 + min_rounds]``; all closed.
        first: int64 ``[K]``: the round of the stream at which the row's correction began.
        lr: float64 ``[K, S]``.
        momentum_buffer: ``[K, N]``, where there is momentum.
    """

    def __init__(
        self,
        flat: FlatParameters,
        loss_fn: LossFunction,
        batches: IndexedBatches,
        *,
        rows: int,
        threshold: float,
        min_rounds: int,
        max_rounds: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.stack = Stack(flat, loss_fn, rows)
        self._batches = batches
        self.rule = {"threshold": threshold, "min_rounds": min_rounds, "max_rounds": max_rounds}
        self._hyper = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        device = flat.data.device
        self.first = torch.zeros(rows, dtype=torch.int64, device=device)
        self.state = torch.zeros_like(ops.gate_state(min_rounds, rows, device=device))
        self.lr = torch.full((rows, len(flat.table)), lr, dtype=torch.float64, device=device)
        self.momentum_buffer = torch.zeros_like(self.stack.data) if momentum else None

    def in_turn(self) -> None:
        """One iteration of the rows held, whose gates are all open, one forward and backward after the other."""
        count = len(self.stack.flats)
        inputs, targets = self._batches.draw_rows(self.first[:count], self.state[:count])
        self._update(self.stack.passes_in_turn(inputs, targets))

    def at_once(self, width: int, *, keep: bool) -> None:
        """One iteration of the first ``width`` rows together; without ``keep`` the gates of all of them are open."""
        state = self.state[:width]
        inputs, targets = self._batches.draw_rows(self.first[:width], state)
        put_back: Callable[[Tensor], None] | None = self.stack.keep_buffers(width) if keep else None
        self._update(self.stack.passes_at_once(inputs, targets))
        if put_back is not None:
            put_back(state[:, OPEN] != 0)

    def _update(self, losses: Tensor) -> None:
        width, stack = len(losses), self.stack
        state = self.state[:width]
        torch.ops.llpf_fast.loss_gate_.default(state, losses, **self.rule)
        torch.ops.llpf_fast.sgd_.default(
            stack.data[:width],
            stack.grad[:width],
            None if self.momentum_buffer is None else self.momentum_buffer[:width],
            self.lr[:width],
            stack.table.segments,
            stack.table.chunks,
            state,
            **self._hyper,
        )
