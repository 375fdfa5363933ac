"""Batches from a counter: which images round r of a path trains on is a pure function of (seed, path, r)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import LLPFError

_MASK32 = 0xFFFFFFFF


def mix(value: Tensor) -> Tensor:
    """A bijective scrambling of 32-bit integers held in int64 (C. Wellons' "lowbias32" constants).

    Plain tensor arithmetic, so the same bits come out on every device, inside a CUDA graph too.
    """
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def mix_int(value: int) -> int:
    """:func:`mix` for one Python integer."""
    value &= _MASK32
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def key_of(seed: int, path: int, round_: int, stream: int = 0) -> int:
    """The 32-bit key of one round; ``stream`` separates batches from augmentation."""
    key = mix_int(seed ^ 0x9E3779B9)
    for part in (seed >> 32, path, round_, round_ >> 32, stream):
        key = mix_int(key + mix_int(part + 0x85EBCA6B))
    return key


def uniform_bits(key: int, lanes: Tensor) -> Tensor:
    """One 32-bit integer a lane; ``lanes`` is ``arange(n)`` int64."""
    return mix(mix(lanes ^ key) + (key >> 7) & _MASK32)


class Batches(Protocol):
    """A source of training batches."""

    def draw(self, round_: int) -> tuple[Any, Any]:
        """Inputs and targets of round ``round_``."""
        ...


class TensorBatches:
    """Batches of ``batch_size`` drawn with replacement from tensors in memory, by counter.

    Args:
        inputs, targets: equal first dimension, same device.
        batch_size: images a batch.
        seed, path: the key of the stream.
        augment: optional function (inputs, key) -> inputs applied to each batch.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        seed: int,
        path: int = 0,
        augment: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        if len(inputs) == 0:
            raise LLPFError("the training data is empty")
        if len(inputs) != len(targets):
            raise LLPFError(f"training data has {len(inputs)} inputs but {len(targets)} targets")
        self._inputs, self._targets = inputs, targets
        self._seed, self._path, self._augment = seed, path, augment
        self._lanes = torch.arange(batch_size, device=inputs.device)

    def draw(self, round_: int) -> tuple[Tensor, Tensor]:
        bits = uniform_bits(key_of(self._seed, self._path, round_), self._lanes)
        index = bits * len(self._inputs) >> 32
        inputs = self._inputs.index_select(0, index)
        if self._augment is not None:
            inputs = self._augment(inputs, key_of(self._seed, self._path, round_, 1))
        return inputs, self._targets.index_select(0, index)


class LoaderBatches:
    """Batches of a DataLoader (or any re-iterable of (inputs, targets)), started over when it ends.

    The order is the loader's own business, so a resumed run does not repeat an uninterrupted one bit for bit.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._iterator: Iterator[Any] | None = None

    def draw(self, round_: int) -> tuple[Any, Any]:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._loader)
            try:
                inputs, targets = next(self._iterator)
            except StopIteration:
                self._iterator = None
                continue
            return inputs.to(self._device), targets.to(self._device)
        raise LLPFError("the data loader yields no batch")
