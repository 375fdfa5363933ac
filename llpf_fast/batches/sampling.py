"""Training batches: drawn by counter, each a function of (seed, path, round) alone, or those of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import LLPFError
from ..ops.counter_randint import hash32
from .batch import first_tensor, move_batch
from .data import BatchedData, Data, DatasetData, TensorData, as_data
from .loss import LossReduction
from .precision import as_channels_last

_MASK32 = 0xFFFFFFFF
#: First stream of repeated draws; batches have stream 0, augmentation 1, random numbers of modules 2.
_STREAM_REDRAW = 16
#: Draws of one batch after which the data count as having no labels.
_REDRAWS = 1000


def hash32_int(value: int) -> int:
    """:func:`~llpf_fast.ops.counter_randint.hash32` of one Python integer."""
    value &= _MASK32
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def stream_key(seed: int, path: int) -> int:
    """The 32-bit key of a path's batches: ``key`` of :func:`llpf_fast.ops.counter_randint_`."""
    return _absorb(hash32_int(seed ^ 0x9E3779B9), seed >> 32, path)


def round_key(seed: int, path: int, round_: int, stream: int = 0) -> int:
    """The 32-bit key of one round of a path; ``stream`` separates batches (0), augmentation (1) and others."""
    return _absorb(stream_key(seed, path), round_, round_ >> 32, stream)


def _absorb(key: int, *parts: int) -> int:
    for part in parts:
        key = hash32_int(key + hash32_int(part + 0x85EBCA6B))
    return key


def random_bits(key: int, columns: Tensor) -> Tensor:
    """Random integers in [0, 2^32), int64 ``[n]``, a function of ``key`` and ``columns`` (``arange(n)`` int64)."""
    return hash32(hash32(columns ^ key) + (key >> 7) & _MASK32)


def random_integers(key: int, bounds: Sequence[int], columns: Tensor) -> Tensor:
    """Random integers, int64 ``[len(bounds), n]``, row r in [0, ``bounds[r]``); ``columns`` is ``arange(n)`` int64."""
    rows = [random_bits(hash32_int(key + r), columns) * bound >> 32 for r, bound in enumerate(bounds)]
    return torch.stack(rows)


class Batches(Protocol):
    """A source of training batches."""

    def batch(self, round_: int) -> tuple[Any, Any]:
        """(inputs, targets) of round ``round_``."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation whose random choices are integers below fixed bounds, for ``counter_randint_``."""

    bounds: tuple[int, ...]

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """``inputs [B, ...]`` augmented by the choices ``draws [len(bounds), B]`` (int64)."""
        ...


class IndexedBatches:
    """Batches of ``batch_size`` samples, drawn with replacement by counter.

    A batch without a label that counts (``ignore_index``, class weights of 0) has no mean and no part in the loss of
    the set: it is drawn again.

    Args:
        count: number of samples.
        targets: of all samples, to see whether labels are missing; None where they are unknown.
        device: of the draws.
        seed, path: the key of the stream (:func:`stream_key`).
        augment: applied to each batch: a function (inputs, key) -> inputs, or an :class:`Augmentation`, which can be
            drawn on the device.
        channels_last: whether 4-dimensional inputs have their channels last in memory.
        reduction: of the loss, which knows the labels that do not count.

    Attributes:
        draws_on_device: whether :meth:`batch_on_device` and :meth:`batches_of_rows` can be used.
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

    def _samples(self, index: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the samples ``index`` (int64 ``[b]``), on the device."""
        raise NotImplementedError

    def batch(self, round_: int) -> tuple[Any, Any]:
        """(inputs, targets) of round ``round_``.

        Raises:
            LLPFError: no batch with a label in 1000 draws.
        """
        self.seek(round_)
        batch = self._draw(None, round_)
        for attempt in range(1, _REDRAWS):
            if self._reduction is None or self._reduction.weight(batch[1], self._batch_size):
                return batch
            key = round_key(self._seed, self._path, round_, _STREAM_REDRAW + attempt)
            columns = torch.arange(self._batch_size, device=self._draws.device)
            batch = self._select(random_integers(key, self._bounds, columns), round_)
        raise LLPFError(
            f"{_REDRAWS} batches of {self._batch_size} samples in a row have no label that counts for the loss: raise "
            "correction.batch_size, or leave samples without labels out"
        )

    def seek(self, round_: int) -> None:
        """Set the first round of :meth:`batch_on_device`; queued on the device, the host does not wait."""
        self._first.fill_(round_)

    def batch_on_device(self, gate: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the round of :meth:`seek` plus the rounds that ``gate`` has counted.

        No value passes through the host, so a CUDA graph can capture this. ``gate`` is the state of ``loss_gate_``.
        """
        assert self.draws_on_device
        return self._draw(gate, 0)

    def batches_of_rows(self, first: Tensor, gate: Tensor) -> tuple[Any, Any]:
        """(inputs, targets), ``[K, B, ...]``, of K rounds of this stream; no value passes through the host.

        Row k is :meth:`batch` of round ``first[k]`` (int64) plus the rounds that row k of ``gate``, the state of
        ``loss_gate_``, has counted.
        """
        assert self.draws_on_device
        paths = len(first)
        draws = self._draws.new_empty(paths, *self._draws.shape)
        key = self._key.repeat(paths)
        torch.ops.llpf_fast.counter_randint_.default(draws, key, first, gate, bounds=self._bounds)
        inputs, targets = self._samples(draws[:, 0].reshape(-1))
        if self._apply is not None:
            inputs = self._apply(inputs, draws[:, 1:].transpose(0, 1).flatten(1))
        if self._channels_last:
            inputs = as_channels_last(inputs)
        return pytree.tree_map(lambda leaf: leaf.unflatten(0, (paths, -1)), (inputs, targets))

    def _draw(self, gate: Tensor | None, round_: int) -> tuple[Any, Any]:
        torch.ops.llpf_fast.counter_randint_.default(self._draws, self._key, self._first, gate, bounds=self._bounds)
        return self._select(self._draws, round_)

    def _select(self, draws: Tensor, round_: int) -> tuple[Any, Any]:
        inputs, targets = self._samples(draws[0])
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
        self._are_tensors = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
        super().__init__(data.count, targets, batch_size, first_tensor(targets).device, **options)

    def _samples(self, index: Tensor) -> tuple[Any, Any]:
        if self._are_tensors:
            return self._inputs.index_select(0, index), self._targets.index_select(0, index)
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), (self._inputs, self._targets))


class DatasetBatches(IndexedBatches):
    """:class:`IndexedBatches` of the items of a ``Dataset``, read for each batch; never drawn on the device."""

    def __init__(
        self, data: DatasetData, batch_size: int, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> None:
        self._data, self._dtype = data, dtype
        super().__init__(data.count, None, batch_size, device, **options)
        self.draws_on_device = False

    def _samples(self, index: Tensor) -> tuple[Any, Any]:
        return move_batch(*self._data.take(index), self._draws.device, self._dtype)


class LoaderBatches:
    """The batches of a DataLoader (or another re-iterable of batches) in its order, repeated without end.

    The loader decides the order, so a resumed run does not repeat an uninterrupted one bit for bit. Batches without a
    label that counts are skipped.

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
        """The next (inputs, targets), whatever ``round_`` is.

        Raises:
            LLPFError: a whole pass without a batch, or without a label that counts.
        """
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
    path: int = 0,
    augment: Augmentation | None = None,
    channels_last: bool = False,
    reduction: LossReduction | None = None,
) -> IndexedBatches | LoaderBatches:
    """Batches to train on: drawn by counter where samples can be chosen one by one, else those of the loader.

    Raises:
        LLPFError: an augmentation, where the inputs are not one tensor of images.
    """
    if isinstance(data, BatchedData):
        if augment is not None:
            raise LLPFError(
                "augmentation is for images in memory; a loader has its own transforms: set augmentation to none"
            )
        return LoaderBatches(data, device, dtype=dtype, channels_last=channels_last, reduction=reduction)
    options: dict[str, Any] = {
        "seed": seed,
        "path": path,
        "augment": augment,
        "channels_last": channels_last,
        "reduction": reduction,
    }
    if isinstance(data, DatasetData):
        return DatasetBatches(data, batch_size, device, dtype, **options)
    samples = data.to(device, dtype)
    if augment is not None and not (isinstance(samples.inputs, Tensor) and samples.inputs.dim() == 4):
        raise LLPFError("augmentation is for images [n, C, H, W]; set augmentation to none")
    return TensorBatches(samples.inputs, samples.targets, batch_size, **options)
