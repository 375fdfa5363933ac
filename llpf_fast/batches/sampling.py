"""Batches from a counter: which images round r of a path trains on is a pure function of (seed, path, r)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import LLPFError
from ..ops.draw import mix
from .precision import as_channels_last

_MASK32 = 0xFFFFFFFF


def mix_int(value: int) -> int:
    """:func:`mix` for one Python integer."""
    value &= _MASK32
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def path_key(seed: int, path: int) -> int:
    """The 32-bit key that one path's rounds are derived from: ``key`` of :func:`llpf_fast.ops.draw_`."""
    return _absorb(mix_int(seed ^ 0x9E3779B9), seed >> 32, path)


def key_of(seed: int, path: int, round_: int, stream: int = 0) -> int:
    """The 32-bit key of one round; ``stream`` separates batches from augmentation."""
    return _absorb(path_key(seed, path), round_, round_ >> 32, stream)


def _absorb(key: int, *parts: int) -> int:
    for part in parts:
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


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation whose random choices are integers below fixed bounds, so that a device can draw them itself."""

    bounds: tuple[int, ...]

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """``inputs [B, ...]`` augmented as ``draws [len(bounds), B]`` (int64) say."""
        ...


class TensorBatches:
    """Batches of ``batch_size`` drawn with replacement from tensors in memory, by counter.

    Args:
        inputs, targets: equal first dimension, same device.
        batch_size: images a batch.
        seed, path: the key of the stream.
        augment: optional function (inputs, key) -> inputs applied to each batch; an :class:`Augmentation` where the
            batches are to be drawn on the device.
        channels_last: give 4-dimensional inputs with their channels last in memory.

    Attributes:
        counted: whether :meth:`draw_counted` can be used.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        seed: int,
        path: int = 0,
        augment: Callable[[Tensor, int], Tensor] | Augmentation | None = None,
        channels_last: bool = False,
    ) -> None:
        if len(inputs) == 0:
            raise LLPFError("the training data is empty")
        if len(inputs) != len(targets):
            raise LLPFError(f"training data has {len(inputs)} inputs but {len(targets)} targets")
        self._inputs, self._targets = inputs, targets
        self._seed, self._path = seed, path
        self._augment: Callable[[Tensor, int], Tensor] | None = None if isinstance(augment, Augmentation) else augment
        self._channels_last = channels_last
        bounds: tuple[int, ...] = ()
        self._apply: Callable[[Tensor, Tensor], Tensor] | None = None
        if isinstance(augment, Augmentation):
            bounds, self._apply = augment.bounds, augment.apply
        self.counted = self._augment is None
        self._bounds = [len(inputs), *bounds]
        self._draws = torch.empty(len(self._bounds), batch_size, dtype=torch.int64, device=inputs.device)
        self._key = torch.tensor(path_key(seed, path), device=inputs.device)
        self._first = torch.zeros((), dtype=torch.int64, device=inputs.device)

    def draw(self, round_: int) -> tuple[Tensor, Tensor]:
        self.start_at(round_)
        return self._drawn(None, round_)

    def start_at(self, round_: int) -> None:
        """The round that :meth:`draw_counted` adds to; queued on the device, no waiting."""
        self._first.fill_(round_)

    def draw_counted(self, gate: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of the round at which the correction began plus those that ``gate`` has counted.

        The host decides nothing, so this may be captured into a CUDA graph. ``gate`` is the state of ``loss_gate_``.
        """
        assert self.counted
        return self._drawn(gate, 0)

    def draw_rows(self, first: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Batches ``[K, B, ...]`` of K paths of this stream, each of its own round; the host decides nothing.

        Row k holds what :meth:`draw` gives for ``first[k]`` (int64) plus the rounds that row k of ``gate``, the state
        of ``loss_gate_``, has counted.
        """
        assert self.counted
        paths = len(first)
        draws = self._draws.new_empty(paths, *self._draws.shape)
        key = self._key.repeat(paths)
        torch.ops.llpf_fast.draw_.default(draws, key, first, gate, bounds=self._bounds)
        index = draws[:, 0].reshape(-1)
        inputs = self._inputs.index_select(0, index)
        if self._apply is not None:
            inputs = self._apply(inputs, draws[:, 1:].transpose(0, 1).flatten(1))
        if self._channels_last:
            inputs = as_channels_last(inputs)
        targets = self._targets.index_select(0, index)
        return inputs.unflatten(0, (paths, -1)), targets.unflatten(0, (paths, -1))

    def _drawn(self, gate: Tensor | None, round_: int) -> tuple[Tensor, Tensor]:
        torch.ops.llpf_fast.draw_.default(self._draws, self._key, self._first, gate, bounds=self._bounds)
        index = self._draws[0]
        inputs = self._inputs.index_select(0, index)
        if self._apply is not None:
            inputs = self._apply(inputs, self._draws[1:])
        if self._augment is not None:
            inputs = self._augment(inputs, key_of(self._seed, self._path, round_, 1))
        if self._channels_last:
            inputs = as_channels_last(inputs)
        return inputs, self._targets.index_select(0, index)


class LoaderBatches:
    """Batches of a DataLoader (or any re-iterable of (inputs, targets)), started over when it ends.

    The order is the loader's own business, so a resumed run does not repeat an uninterrupted one bit for bit.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, *, channels_last: bool = False) -> None:
        self._loader, self._device, self._channels_last = loader, device, channels_last
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
            inputs = inputs.to(self._device)
            return as_channels_last(inputs) if self._channels_last else inputs, targets.to(self._device)
        raise LLPFError("the data loader yields no batch")
