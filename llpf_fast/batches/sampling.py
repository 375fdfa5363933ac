"""Batches from a counter: which images round r of a path trains on is a pure function of (seed, path, r)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import LLPFError
from ..ops.draw import hash32
from .batch import first_tensor, move_batch
from .data import BatchedData, Data, DatasetData, TensorData, as_data
from .loss import LossReduction
from .precision import as_channels_last

_MASK32 = 0xFFFFFFFF
#: Streams of a round beside batches (0), augmentation (1) and a module's own numbers (2).
_STREAM_REDRAW = 16
#: Draws of one batch before the data count as having no labels.
_REDRAWS = 1000


def hash32_int(value: int) -> int:
    """:func:`~llpf_fast.ops.draw.hash32` for one Python integer."""
    value &= _MASK32
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def stream_key(seed: int, path: int) -> int:
    """The 32-bit key that one path's rounds are derived from: ``key`` of :func:`llpf_fast.ops.draw_`."""
    return _absorb(hash32_int(seed ^ 0x9E3779B9), seed >> 32, path)


def round_key(seed: int, path: int, round_: int, stream: int = 0) -> int:
    """The 32-bit key of one round; ``stream`` separates batches from augmentation."""
    return _absorb(stream_key(seed, path), round_, round_ >> 32, stream)


def _absorb(key: int, *parts: int) -> int:
    for part in parts:
        key = hash32_int(key + hash32_int(part + 0x85EBCA6B))
    return key


def random_bits(key: int, lanes: Tensor) -> Tensor:
    """One 32-bit integer a lane; ``lanes`` is ``arange(n)`` int64."""
    return hash32(hash32(lanes ^ key) + (key >> 7) & _MASK32)


class Batches(Protocol):
    """A source of training batches."""

    def batch(self, round_: int) -> tuple[Any, Any]:
        """Inputs and targets of round ``round_``."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation whose random choices are integers below fixed bounds, so that a device can draw them itself."""

    bounds: tuple[int, ...]

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """``inputs [B, ...]`` augmented as ``draws [len(bounds), B]`` (int64) say."""
        ...


class IndexedBatches:
    """Batches of ``batch_size`` samples drawn with replacement, by counter, from samples that can be chosen one by one.

    A batch without a single label, where the loss knows labels that do not count (``ignore_index``, class weights of
    0), is drawn anew: its mean is undefined, and it has no part in the loss of the set.

    Args:
        count: samples to draw from.
        targets: of all of them, where they are known: whether labels are missing.
        device: where the draws happen.
        seed, path: the key of the stream.
        augment: optional function (inputs, key) -> inputs applied to each batch; an :class:`Augmentation` where the
            batches are to be drawn on the device.
        channels_last: give 4-dimensional inputs with their channels last in memory.
        reduction: of the loss, which knows the labels that do not count.

    Attributes:
        draws_on_device: whether :meth:`batch_on_device` can be used.
    """

    def __init__(
        self,
        count: int,
        targets: Any,
        batch_size: int,
        device: torch.device,
        *,
        seed: int,
        path: int = 0,
        augment: Callable[[Tensor, int], Tensor] | Augmentation | None = None,
        channels_last: bool = False,
        reduction: LossReduction | None = None,
    ) -> None:
        self._count, self._batch_size, self._seed, self._path = count, batch_size, seed, path
        self._augment: Callable[[Tensor, int], Tensor] | None = None if isinstance(augment, Augmentation) else augment
        self._channels_last = channels_last
        bounds: tuple[int, ...] = ()
        self._apply: Callable[[Tensor, Tensor], Tensor] | None = None
        if isinstance(augment, Augmentation):
            bounds, self._apply = augment.bounds, augment.apply
        self._reduction = reduction if reduction is not None and reduction.may_lack_labels(targets) else None
        self.draws_on_device = self._augment is None and self._reduction is None
        self._bounds = [count, *bounds]
        self._draws = torch.empty(len(self._bounds), batch_size, dtype=torch.int64, device=device)
        self._key = torch.tensor(stream_key(seed, path), device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def _taken(self, index: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the samples ``index [b]``, on the device."""
        raise NotImplementedError

    def batch(self, round_: int) -> tuple[Any, Any]:
        """Inputs and targets of round ``round_``.

        Raises:
            LLPFError: no batch with a label in as many draws as make that all but impossible.
        """
        self.seek(round_)
        batch = self._drawn(None, round_)
        for attempt in range(1, _REDRAWS):
            if self._reduction is None or self._reduction.weight(batch[1], self._batch_size):
                return batch
            key = round_key(self._seed, self._path, round_, _STREAM_REDRAW + attempt)
            lanes = torch.arange(self._batch_size, device=self._draws.device)
            rows = [random_bits(hash32_int(key + i), lanes) * bound >> 32 for i, bound in enumerate(self._bounds)]
            batch = self._formed(torch.stack(rows), round_)
        raise LLPFError(
            f"{_REDRAWS} batches of {self._batch_size} samples in a row have no label that counts for the loss: raise "
            "correction.batch_size, or leave samples without labels out"
        )

    def seek(self, round_: int) -> None:
        """The round that :meth:`batch_on_device` adds to; queued on the device, no waiting."""
        self._first.fill_(round_)

    def batch_on_device(self, gate: Tensor) -> tuple[Any, Any]:
        """The batch of the round at which the correction began plus those that ``gate`` has counted.

        The host decides nothing, so this may be captured into a CUDA graph. ``gate`` is the state of ``loss_gate_``.
        """
        assert self.draws_on_device
        return self._drawn(gate, 0)

    def batches_of_rows(self, first: Tensor, gate: Tensor) -> tuple[Any, Any]:
        """Batches ``[K, B, ...]`` of K paths of this stream, each of its own round; the host decides nothing.

        Row k holds what :meth:`batch` gives for ``first[k]`` (int64) plus the rounds that row k of ``gate``, the state
        of ``loss_gate_``, has counted.
        """
        assert self.draws_on_device
        paths = len(first)
        draws = self._draws.new_empty(paths, *self._draws.shape)
        key = self._key.repeat(paths)
        torch.ops.llpf_fast.draw_.default(draws, key, first, gate, bounds=self._bounds)
        inputs, targets = self._taken(draws[:, 0].reshape(-1))
        if self._apply is not None:
            inputs = self._apply(inputs, draws[:, 1:].transpose(0, 1).flatten(1))
        if self._channels_last:
            inputs = as_channels_last(inputs)
        return pytree.tree_map(lambda leaf: leaf.unflatten(0, (paths, -1)), (inputs, targets))

    def _drawn(self, gate: Tensor | None, round_: int) -> tuple[Any, Any]:
        torch.ops.llpf_fast.draw_.default(self._draws, self._key, self._first, gate, bounds=self._bounds)
        return self._formed(self._draws, round_)

    def _formed(self, draws: Tensor, round_: int) -> tuple[Any, Any]:
        inputs, targets = self._taken(draws[0])
        if self._apply is not None:
            inputs = self._apply(inputs, draws[1:])
        if self._augment is not None:
            inputs = self._augment(inputs, round_key(self._seed, self._path, round_, 1))
        return as_channels_last(inputs) if self._channels_last else inputs, targets


class TensorBatches(IndexedBatches):
    """:class:`IndexedBatches` of tensors in memory.

    Args:
        inputs, targets: tensors, or pytrees of tensors, of equal first dimension on one device.
        batch_size, ...: see :class:`IndexedBatches`.

    Raises:
        LLPFError: no samples, or numbers that differ.
    """

    def __init__(self, inputs: Any, targets: Any, batch_size: int, **options: Any) -> None:
        data = TensorData(inputs, targets, "training data")
        self._inputs, self._targets = data.inputs, data.targets
        self._plain = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
        super().__init__(data.count, targets, batch_size, first_tensor(targets).device, **options)

    def _taken(self, index: Tensor) -> tuple[Any, Any]:
        if self._plain:
            return self._inputs.index_select(0, index), self._targets.index_select(0, index)
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), (self._inputs, self._targets))


class DatasetBatches(IndexedBatches):
    """:class:`IndexedBatches` of the items of a ``Dataset``, read anew for every batch."""

    def __init__(
        self, data: DatasetData, batch_size: int, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> None:
        self._data, self._dtype = data, dtype
        super().__init__(data.count, None, batch_size, device, **options)
        self.draws_on_device = False

    def _taken(self, index: Tensor) -> tuple[Any, Any]:
        return move_batch(*self._data.take(index), self._draws.device, self._dtype)


class LoaderBatches:
    """Batches of a DataLoader (or any re-iterable of batches) as they come, started over when it ends.

    The order is the loader's own business, so a resumed run does not repeat an uninterrupted one bit for bit. Batches
    without a single label are passed over, as in :class:`IndexedBatches`.

    Args:
        loader: see :func:`~llpf_fast.batches.data.as_data`.
        dtype: of floating values.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        reduction: LossReduction | None = None,
    ) -> None:
        data = as_data(loader)
        assert isinstance(data, BatchedData)
        self._data, self._device, self._dtype, self._channels_last = data, device, dtype, channels_last
        self._reduction = reduction if reduction is not None and reduction.may_lack_labels(None) else None
        self._iterator: Iterator[tuple[Any, Any]] | None = None

    def batch(self, round_: int) -> tuple[Any, Any]:
        passes = skipped = 0
        while passes < 2:
            if self._iterator is None:
                self._iterator = iter(self._data)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                passes += 1
                continue
            inputs, targets = move_batch(*batch, self._device, self._dtype)
            if self._reduction is not None and not self._reduction.weight(targets, 1):
                skipped += 1
                continue
            return as_channels_last(inputs) if self._channels_last else inputs, targets
        if skipped:
            raise LLPFError("no batch of the data loader has a label that counts for the loss")
        raise LLPFError("the data loader yields no batch")


def training_batches(
    data: Data,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int,
    augment: Augmentation | None = None,
    channels_last: bool = False,
    reduction: LossReduction | None = None,
) -> IndexedBatches | LoaderBatches:
    """Mini-batches to train on: drawn by counter where samples can be chosen, else the loader's own.

    Raises:
        LLPFError: an augmentation, which is for one tensor of images, and other inputs.
    """
    if isinstance(data, BatchedData):
        if augment is not None:
            raise LLPFError("augmentation is for images in memory; a loader augments its own: set augmentation to none")
        return LoaderBatches(data, device, dtype=dtype, channels_last=channels_last, reduction=reduction)
    options: dict[str, Any] = {"seed": seed, "augment": augment, "channels_last": channels_last, "reduction": reduction}
    if isinstance(data, DatasetData):
        return DatasetBatches(data, batch_size, device, dtype, **options)
    placed = data.to(device, dtype)
    if augment is not None and not (isinstance(placed.inputs, Tensor) and placed.inputs.dim() == 4):
        raise LLPFError("augmentation is for images [n, C, H, W]; set augmentation to none")
    return TensorBatches(placed.inputs, placed.targets, batch_size, **options)
