"""K paths as the rows of one buffer, and one iteration of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from .. import ops
from ..batches.batch import first_tensor
from ..batches.forward import fixed_random_numbers
from ..batches.loss import NO_GRADIENT, compute_loss
from ..batches.sampling import IndexedBatches
from ..errors import LLPFError
from ..flat import FlatParameters, copied
from ..ops.loss_gate import ACTIVE
from ..types import LossFunction
from .snapshots import random_states, set_random_states


class ParameterStack:
    """Rows of ``data [K, N]``: the values of K modules, with their gradients and buffers.

    Its paths are always the first rows, so that every op call and every pass runs over one piece of memory.

    Args:
        flat: of one module of the architecture; only its layout counts.
        loss_fn: (model output, targets) -> scalar mean loss.
        capacity: K.

    Attributes:
        data, grad: ``[K, N]``, dtype and device of ``flat.data``.
        flats: of the paths in the stack, in the order of their rows; their values, gradients and buffers are rows.
    """

    def __init__(self, flat: FlatParameters, loss_fn: LossFunction, capacity: int) -> None:
        self._module = copied(flat.module).train()
        self._loss_fn, self.capacity, self.table = loss_fn, capacity, flat.table
        self.data = flat.data.new_zeros(capacity, flat.table.numel)
        self.grad = torch.zeros_like(self.data)
        self._views = {name: (view.shape, view.stride(), view.storage_offset()) for name, view in _views(flat).items()}
        trained = {name: parameter.requires_grad for name, parameter in flat.module.named_parameters()}
        self._trained = [trained[name] for name in self._views]
        self._buffers = {
            name: buffer.new_zeros(capacity, *buffer.shape) for name, buffer in flat.module.named_buffers()
        }
        self._rows: dict[int, tuple[dict[str, Tensor], list[Tensor], list[Tensor]]] = {}
        #: Of each row that was seeded: the state of torch's generators in which its next passes begin.
        self._random: list[list[Tensor] | None] = []
        self.flats: list[FlatParameters] = []

    def take(self, flat: FlatParameters) -> int:
        """Move one more path, its values and buffers, into the next row; returns the row."""
        row = len(self.flats)
        flat.module.train()
        self._move(flat, row)
        self.flats.append(flat)
        self._random.append(None)
        return row

    def drop(self, row: int) -> int:
        """Remove the path of ``row``; returns the row whose path was moved there (itself where it was the last)."""
        last = len(self.flats) - 1
        flat, random = self.flats.pop(), self._random.pop()
        if row != last:
            self._move(flat, row)
            self.flats[row], self._random[row] = flat, random
        return last

    def seed(self, row: int, seed: int) -> None:
        """Let sequential passes of ``row`` draw the random numbers (dropout) that a path alone draws after ``seed``."""
        with fixed_random_numbers(self.data.device, seed):
            self._random[row] = random_states(self.data.device)

    @torch.no_grad()
    def _move(self, flat: FlatParameters, row: int) -> None:
        flat.move_to(self.data[row], self.grad[row])
        for name, buffer in flat.module.named_buffers():
            target = self._buffers[name][row]
            target.copy_(buffer)
            buffer.data = target

    def save_buffers(self, width: int) -> Callable[[Tensor], None]:
        """Copy the buffers of the first ``width`` rows; returns a function that restores rows.

        That function takes a bool ``[width]`` and restores the rows where it is False.
        """
        now = [buffer[:width] for buffer in self._buffers.values()]
        saved = [buffer.clone() for buffer in now]

        def restore(counts: Tensor) -> None:
            for old, new in zip(saved, now, strict=True):
                new.copy_(torch.where(counts.view(-1, *[1] * (new.dim() - 1)), new, old))

        return restore

    def sequential_passes(self, inputs: Any, targets: Any) -> Tensor:
        """Losses ``[k]`` after forward and backward of one row after the other, with the bits of a path alone."""
        device = self.data.device
        before = random_states(device)
        try:
            return torch.stack([self._pass(row, inputs, targets) for row in range(len(self.flats))])
        finally:
            set_random_states(device, before)

    def _pass(self, row: int, inputs: Any, targets: Any) -> Tensor:
        """Forward and backward of one row on its batch; returns the loss."""
        flat, states, device = self.flats[row], self._random[row], self.data.device
        flat.zero_grad()
        x, y = pytree.tree_map(lambda leaf: leaf[row], (inputs, targets))
        if states is not None:
            set_random_states(device, states)
        loss = compute_loss(flat.module, self._loss_fn, x, y)
        if not loss.requires_grad:
            raise LLPFError(NO_GRADIENT)
        loss.backward()
        if states is not None:
            self._random[row] = random_states(device)
        flat.ensure_gradients()
        return loss.detach().reshape(())

    def batched_passes(self, inputs: Any, targets: Any) -> Tensor:
        """Losses ``[k]`` after one forward and backward of the first k rows, on batches ``[k, B, ...]``."""
        width = len(first_tensor(targets))
        rows = self._rows.get(width)
        if rows is None:
            rows = self._rows[width] = self._first_rows(width)
        leaves, trained, gradients = rows
        buffers = {name: buffer[:width] for name, buffer in self._buffers.items()}
        losses = vmap(self._loss)(leaves, buffers, inputs, targets)
        if not losses.requires_grad:
            raise LLPFError(NO_GRADIENT)
        # Rows share no value, so the gradient of the sum holds that of each row.
        computed = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        for target, gradient in zip(gradients, computed, strict=True):
            target.zero_() if gradient is None else target.copy_(gradient)
        return losses.detach()

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        def model(*values: Any, **named: Any) -> Any:
            return functional_call(self._module, (parameters, buffers), values, named)

        return compute_loss(model, self._loss_fn, x, y).reshape(())

    def _first_rows(self, width: int) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """Views of the first rows, one a parameter; of these, those that train; and the views of their gradients."""
        leaves, trained, gradients = {}, [], []
        for (name, (shape, stride, offset)), trains in zip(self._views.items(), self._trained, strict=True):
            where = (width, *shape), (self.data.stride(0), *stride), offset
            leaves[name] = self.data.as_strided(*where)
            if trains:
                trained.append(leaves[name].requires_grad_())
                gradients.append(self.grad.as_strided(*where))
        return leaves, trained, gradients


def _views(flat: FlatParameters) -> dict[str, Tensor]:
    # Of a new buffer, so that offsets are those inside one row.
    return flat.views(torch.empty_like(flat.data))


class StackedStep:
    """Draw, forward, loss, gate, backward and update of the first rows of a stack; each row has a gate and a stream.

    A row whose gate is closed does not change: parameters, momentum, buffers, counters. So a call may be repeated
    without reading the gates, and may be captured into a CUDA graph.

    Args:
        flat: of one module of the architecture; only its layout counts.
        batches: where every row's batches come from.
        rows: capacity.
        threshold, ..., nesterov: see :class:`~llpf_fast.correct.Correction`.

    Attributes:
        state: of ``loss_gate_``, ``[K, 4 + window]``; all closed.
        first: int64 ``[K]``: the batch of the stream with which the row's correction began.
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
        window: int,
        max_steps: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.stack = ParameterStack(flat, loss_fn, rows)
        self._batches = batches
        self.rule = {"threshold": threshold, "window": window, "max_steps": max_steps}
        self._hyper = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        device = flat.data.device
        self.first = torch.zeros(rows, dtype=torch.int64, device=device)
        self.state = torch.zeros_like(ops.gate_state(window, rows, device=device))
        self.lr = torch.full((rows, len(flat.table)), lr, dtype=torch.float64, device=device)
        self.momentum_buffer = torch.zeros_like(self.stack.data) if momentum else None

    def sequential(self) -> None:
        """One iteration of all rows, one forward and backward after the other; their gates must be open."""
        count = len(self.stack.flats)
        inputs, targets = self._batches.batches_of_rows(self.first[:count], self.state[:count])
        self._update(self.stack.sequential_passes(inputs, targets))

    def batched(self, width: int, *, gates_may_be_closed: bool) -> None:
        """One iteration of the first ``width`` rows by one forward and one backward."""
        state = self.state[:width]
        inputs, targets = self._batches.batches_of_rows(self.first[:width], state)
        restore = self.stack.save_buffers(width) if gates_may_be_closed else None
        self._update(self.stack.batched_passes(inputs, targets))
        if restore is not None:
            restore(state[:, ACTIVE] != 0)

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
