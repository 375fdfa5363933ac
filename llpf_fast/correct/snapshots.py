"""Snapshots of a module's buffers and of random states, and how they are restored."""

from __future__ import annotations

import random

import numpy
import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..ops.loss_gate import ACTIVE


class BufferSnapshot:
    """Makes the buffers of ``module`` views of one tensor a dtype, so that saving and restoring take a kernel each.

    The buffers stay the same objects with the same values.

    Raises:
        LLPFError: two buffers that share memory, or one that is not dense.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module) -> None:
        self._module, self._buffers = module, dict(module.named_buffers())
        self._check()
        self._now: list[Tensor] = []
        for dtype in dict.fromkeys(buffer.dtype for buffer in self._buffers.values()):
            chosen = [buffer for buffer in self._buffers.values() if buffer.dtype == dtype]
            now = torch.cat([buffer.reshape(-1) for buffer in chosen])
            parts = now.split([buffer.numel() for buffer in chosen])
            for buffer, part in zip(chosen, parts, strict=True):
                buffer.data = part.view(buffer.shape)
            self._now.append(now)
        self._saved = [now.clone() for now in self._now]
        self._addresses = self._present()

    def _check(self) -> None:
        owners: dict[int, str] = {}
        for name, buffer in self._buffers.items():
            if buffer.layout is not torch.strided:
                raise LLPFError(f"buffer {name} is not dense")
            other = owners.setdefault(buffer.untyped_storage().data_ptr(), name)
            # Rows of a stack, and buffers that an earlier snapshot joined, share a storage without overlapping.
            if other != name and buffer.numel() and _overlap(buffer, self._buffers[other]):
                raise LLPFError(f"buffers {other} and {name} share memory")

    def _present(self) -> dict[str, int]:
        return {name: buffer.data_ptr() for name, buffer in self._module.named_buffers()}

    def moved(self) -> str | None:
        """Name of a buffer that has another address now (its module assigned a new tensor), appeared or vanished."""
        present = self._present()
        changed = {name for name, _ in self._addresses.items() ^ present.items()}
        return min(changed, default=None)

    def save(self) -> None:
        """Copy the present values into the snapshot."""
        for saved, now in zip(self._saved, self._now, strict=True):
            saved.copy_(now)

    def restore(self, state: Tensor) -> None:
        """Go back to the saved values if the gate's ``state`` is closed: this iteration did not count."""
        if not self._now:
            return
        is_open = state[ACTIVE] != 0
        for saved, now in zip(self._saved, self._now, strict=True):
            torch.where(is_open, now, saved, out=now)


def _overlap(a: Tensor, b: Tensor) -> bool:
    def span(tensor: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()

    (a0, a1), (b0, b1) = span(a), span(b)
    return a0 < b1 and b0 < a1


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators: of the CPU and, where ``device`` is a GPU, of that."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_states(device: torch.device, states: list[Tensor]) -> None:
    """Go back to what :func:`random_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class RngSnapshot:
    """The present states of torch's generators (of the CPU and of ``device``), NumPy's and Python's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch, self._numpy, self._python = random_states(device), numpy.random.get_state(), random.getstate()

    def consumed(self) -> bool:
        """Whether a number has been drawn since."""
        same = all(map(torch.equal, self._torch, random_states(self._device))) and random.getstate() == self._python
        pairs = zip(self._numpy, numpy.random.get_state(), strict=True)
        return not (same and all(numpy.array_equal(a, b) for a, b in pairs))

    def restore(self) -> None:
        """Go back to the saved states."""
        set_random_states(self._device, self._torch)
        numpy.random.set_state(self._numpy)
        random.setstate(self._python)
