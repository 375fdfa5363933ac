"""``SgdStep``: one iteration of a correction with ``sgd_``, without a decision of the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..batches.loss import ForwardLoss
from ..batches.sampling import IndexedBatches
from ..errors import LLPFError
from ..flat import FlatParameters
from .snapshots import BufferSnapshot

#: Bytes of gradients up to which, inside a CUDA graph, autograd makes new ones that one kernel copies into the buffer.
#: Above, each is added into the buffer, which takes a kernel a parameter and no memory.
_GATHERED_BYTES = 64 << 20


class SgdStep:
    """Forward, loss, gate, backward and update: :meth:`train` on a given batch, a call on the gate's next batch.

    A call while the gate is closed changes nothing: no parameter, no momentum, no buffer of the module (BatchNorm's
    statistics), no counter. So calls may be queued without waiting for the gate to close, and may be captured into a
    CUDA graph.

    Args:
        flat: the module and its flat buffers.
        state: of ``loss_gate_``; ``rule`` its other arguments.
        lr: float64 ``[]``.
        hyper: of ``sgd_``.
        momentum_buffer: ``[N]``, where ``hyper`` has momentum.
    """

    def __init__(
        self,
        flat: FlatParameters,
        forward_loss: ForwardLoss,
        *,
        state: Tensor,
        rule: dict[str, Any],
        lr: Tensor,
        hyper: dict[str, Any],
        momentum_buffer: Tensor | None,
    ) -> None:
        self.flat, self.state, self.rule = flat, state, rule
        self._forward_loss, self._hyper, self._momentum_buffer = forward_loss, hyper, momentum_buffer
        self._base_lr = self._lr = lr
        self._batches: IndexedBatches | None = None
        self._buffers: BufferSnapshot | None = None
        self._gather = False

    def scale_lr(self, scale: Tensor | None) -> None:
        """``lr`` times a factor a segment, float64 ``[S]``, in place after the first time; None: ``lr`` for all."""
        if scale is None:
            self._lr.copy_(self._base_lr)
        elif self._lr.dim() == 0:
            self._lr = self._base_lr * scale
        else:
            torch.mul(self._base_lr, scale, out=self._lr)

    def bind_batches(self, batches: IndexedBatches, *, gather: bool | None = None) -> None:
        """Set where calls take their batches from; needed before the first call.

        Args:
            gather: whether gradients are made anew and then copied; None decides by their size and device. Both ways
                give the same values (a zero may have another sign).

        Raises:
            LLPFError: a buffer of the module that :class:`BufferSnapshot` refuses.
        """
        self._batches = batches
        self._buffers = BufferSnapshot(self.flat.module)
        data = self.flat.data
        small = data.is_cuda and data.numel() * data.element_size() <= _GATHERED_BYTES
        self._gather = small if gather is None else gather

    def __call__(self) -> None:
        assert self._batches is not None
        assert self._buffers is not None
        self._buffers.save()
        self.train(*self._batches.batch_on_device(self.state), gather=self._gather)
        self._buffers.restore(self.state)

    def train(self, inputs: Any, targets: Any, *, gather: bool = False) -> None:
        """One iteration on the given batch.

        Raises:
            LLPFError: see :class:`ForwardLoss`.
        """
        flat = self.flat
        if gather:
            for parameter in flat.module.parameters():
                parameter.grad = None
        else:
            flat.zero_grad()
        loss = self._forward_loss(inputs, targets)
        torch.ops.llpf_fast.loss_gate_.default(self.state, loss.detach(), **self.rule)
        loss.backward()
        flat.ensure_gradients()
        torch.ops.llpf_fast.sgd_.default(
            flat.data,
            flat.grad,
            self._momentum_buffer,
            self._lr,
            flat.table.segments,
            flat.table.chunks,
            self.state,
            **self._hyper,
        )

    def memory(self) -> tuple[int, ...]:
        """Addresses that a captured call reads and writes: another answer than before means capturing anew."""
        assert self._buffers is not None
        moved = self._buffers.moved()
        if moved is not None:
            raise LLPFError(f"buffer {moved} of the model is replaced, not changed in place")
        flat = self.flat
        tensors = (flat.data, flat.grad, self._momentum_buffer, self._lr, flat.table.segments, flat.table.chunks)
        return (flat.version, *(0 if tensor is None else tensor.data_ptr() for tensor in tensors))
