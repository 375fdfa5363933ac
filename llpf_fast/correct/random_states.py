"""``RandomStates``: every generator that a forward pass may consume without being handed one."""

from __future__ import annotations

import random

import numpy
import torch
from torch import Tensor


class RandomStates:
    """Remembers torch's (of the CPU and of ``device``), NumPy's and Python's generators as they are now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch, self._numpy, self._python = self._tensors(), numpy.random.get_state(), random.getstate()

    def _tensors(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def consumed(self) -> bool:
        """Whether a number has been drawn since."""
        same = all(map(torch.equal, self._torch, self._tensors())) and random.getstate() == self._python
        pairs = zip(self._numpy, numpy.random.get_state(), strict=True)
        return not (same and all(numpy.array_equal(a, b) for a, b in pairs))

    def restore(self) -> None:
        """Go back to the states remembered."""
        torch.set_rng_state(self._torch[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._torch[1], self._device)
        numpy.random.set_state(self._numpy)
        random.setstate(self._python)
