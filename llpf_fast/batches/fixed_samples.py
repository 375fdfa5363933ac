"""``FixedSamples``: the samples that every point of a path is evaluated on; fixed subsets of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import LLPFError
from .batch import batch_length, first_tensor, move_batch, tensors_of
from .data import BatchedData, Data, DatasetData, OnRead, TensorData
from .digest import data_digest, sample_set_digest
from .forward import ForwardMode, choose_forward_mode, forward
from .loss import LossReduction
from .precision import as_channels_last, float32_products

#: Data in memory: samples, or whole batches of a loader.
MaterializedData = TensorData | list[tuple[Any, Any]]


def materialize(data: Data, samples: int | None = None, on_read: OnRead | None = None) -> MaterializedData:
    """``data`` in memory, read once: a source that shuffles or augments would evaluate each point on other samples.

    Args:
        samples: of batches, read the first with so many; of a ``Dataset`` too large for memory, choose so many. None:
            all.
        on_read: called with the number of samples so far, while batches are read.

    Raises:
        LLPFError: no data, or more than half of this machine's memory can take.
    """
    if isinstance(data, BatchedData):
        return data.materialize(samples, on_read)
    return data.materialize(samples) if isinstance(data, DatasetData) else data


def sample_count(data: MaterializedData) -> int:
    """Number of samples."""
    return data.count if isinstance(data, TensorData) else sum(batch_length(*batch) for batch in data)


def fixed_subset(data: MaterializedData, size: int) -> MaterializedData:
    """About ``size`` samples, always the same: stratified (:func:`stratified_subset`), or evenly spaced whole batches.

    All of them where ``size`` is 0 or not less than their number.
    """
    if isinstance(data, TensorData):
        chosen = stratified_subset(first_tensor(data.targets), size)
        return data if len(chosen) == data.count else data.subset(chosen)
    count = sample_count(data)
    if size <= 0 or size >= count:
        return data
    batches = max(1, min(len(data), round(len(data) * size / count)))
    return [data[i * len(data) // batches] for i in range(batches)]


def materialized_digest(data: MaterializedData, dtype: torch.dtype) -> str:
    """:func:`data_digest` of the samples as a network of ``dtype`` gets them: equal for NumPy's float64 and tensors."""
    cpu = torch.device("cpu")
    if isinstance(data, TensorData):
        return data.to(cpu, dtype).sha256
    return data_digest([move_batch(*batch, cpu, dtype) for batch in data])


def materialized_set_digest(data: MaterializedData, dtype: torch.dtype) -> str:
    """:func:`sample_set_digest` of the samples as a network of ``dtype`` gets them."""
    cpu = torch.device("cpu")
    if isinstance(data, TensorData):
        return data.to(cpu, dtype).set_sha256
    return sample_set_digest(move_batch(*batch, cpu, dtype) for batch in data)


class FixedSamples:
    """Inputs and targets on one device, in batches that never change.

    Args:
        data: samples, split into batches here; or batches, which stay whole.
        batch_size: of samples. A last batch of one sample joins the batch before: normalization over a batch refuses
            it.
        dtype: of floating values, inputs and targets.
        channels_last: whether 4-dimensional inputs lie with their channels last in memory.

    Attributes:
        batches: (inputs, targets, number of samples) of each.
        count: number of samples in all batches.

    Raises:
        LLPFError: no samples.
    """

    def __init__(
        self,
        data: MaterializedData,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        def moved(inputs: Any, targets: Any) -> tuple[Any, Any]:
            inputs, targets = move_batch(inputs, targets, device, dtype)
            return (as_channels_last(inputs) if channels_last else inputs), targets

        if isinstance(data, TensorData):
            # One move, then slices: the batches are views of one tensor.
            inputs, targets = moved(data.inputs, data.targets)
            batches: Sequence[tuple[Any, Any]] = list(_split(inputs, targets, data.count, batch_size))
        else:
            batches = [moved(*batch) for batch in data]
        self.batches = [(inputs, targets, batch_length(inputs, targets)) for inputs, targets in batches]
        self.count = sum(size for _, _, size in self.batches)
        if self.count == 0:
            raise LLPFError("the data set is empty: there is nothing to evaluate on")

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def weights(self, reduction: LossReduction) -> list[float]:
        """Denominator of each batch's loss (:meth:`LossReduction.weight`); LLPFError where no sample has a label."""
        weights = [reduction.weight(targets, size) for _, targets, size in self.batches]
        if not sum(weights) > 0:
            raise LLPFError(
                f"no sample has a label that counts for the loss {reduction.name}: the mean over none is undefined"
            )
        return weights

    def shares(self, reduction: LossReduction) -> list[float]:
        """Factor of each batch's loss, so that the sum of the products is the loss of the set.

        A batch with share 0 has no label; its loss is NaN and does not count.

        Raises:
            LLPFError: no label at all; or a batch whose labels all have class weight 0 under label smoothing, which
                makes them count (in the sum of :meth:`LossReduction.numerators`, not in the mean of the batch).
        """
        weights = self.weights(reduction)
        for weight, (_, targets, _) in zip(weights, self.batches, strict=True):
            if not weight and reduction.smooths and bool(reduction.labelled(targets).any()):
                raise LLPFError(
                    f"a batch has only labels of class weight 0, of which {reduction.name} has no mean: shuffle it"
                )
        total = reduction.total(weights)
        return [weight / total for weight in weights]


def try_network(
    module: nn.Module,
    data: MaterializedData,
    *,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
    batch_size: int = 8,
    training: int = 0,
) -> tuple[ForwardMode, Any, Any]:
    """The mode in which ``module`` runs in eval mode on ``device``; its output on a first batch; that batch's targets.

    Args:
        module: on ``device``. With ``training`` a copy, whose buffers may change.
        data: its first samples are tried.
        dtype: of floating inputs.
        channels_last: whether that memory order is tried first.
        batch_size: samples of the first batch.
        training: also try so many samples in training mode, with gradients, and give channels last up where that
            fails; 0 for none. A network may behave differently at other batch sizes.

    Raises:
        LLPFError: the module does not run on the data.
    """

    def first(size: int) -> tuple[Any, Any]:
        few = data.subset(torch.arange(min(data.count, size))) if isinstance(data, TensorData) else data[:1]
        ((inputs, targets, _),) = FixedSamples(few, batch_size=size, device=device, dtype=dtype)
        return inputs, targets

    inputs, targets = first(batch_size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), float32_products("float32", device):
        mode, output = choose_forward_mode(module, inputs, channels_last=channels_last)
        if training and mode.channels_last:
            some, _ = first(training)
            # Where neither order can be trained on (normalization of one sample), the search will say so.
            with contextlib.suppress(LLPFError), torch.enable_grad():
                try:
                    if any(leaf.dim() == 4 for leaf in tensors_of(some)):
                        forward(module.train(), as_channels_last(some))
                except LLPFError:
                    forward(module, some)
                    mode = replace(mode, channels_last=False)
    return mode, output, targets


def _split(inputs: Any, targets: Any, count: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and starts[-1] == count - 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            yield inputs[start:end], targets[start:end]
        else:
            yield pytree.tree_map(lambda leaf, a=start, b=end: leaf[a:b], (inputs, targets))


def stratified_subset(targets: Tensor, size: int, seed: int = 0) -> Tensor:
    """``size`` indices into ``targets`` in ascending order, a function of the arguments alone.

    Where the targets are integers ``[n]`` of at most ``size`` classes, every class gives the same share of its members
    (largest remainders first), so the mean over the subset is an unbiased estimate of the mean over all samples.
    Otherwise the choice is uniform. torch's global generator is not used.

    Args:
        targets: ``[n, ...]``, any dtype and device.
        size: number of indices; all ``n`` where it is 0, negative or larger than ``n``.
        seed: of the random choice.

    Returns:
        int64 ``[size]`` on the CPU.

    Raises:
        LLPFError: there are no targets.
    """
    count = len(targets)
    if count == 0:
        raise LLPFError("the data set is empty: there is nothing to choose a subset from")
    if size <= 0 or size >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    whole_numbers = not (targets.is_floating_point() or targets.is_complex())
    if not whole_numbers or targets.dim() != 1:
        return order[:size].sort().values
    classes, members = targets.cpu().unique(return_inverse=True)
    if len(classes) > size:
        return order[:size].sort().values
    quotas = _quotas(members.bincount(minlength=len(classes)), size)
    shuffled = members[order]
    chosen = [order[shuffled == label][:quota] for label, quota in enumerate(quotas)]
    return torch.cat(chosen).sort().values


def _quotas(counts: Tensor, size: int) -> list[int]:
    """``size`` split in proportion to ``counts [classes]``: the largest remainders round up, ties in class order."""
    scaled = counts * size
    total = int(counts.sum())
    quotas = scaled // total
    missing = size - int(quotas.sum())
    up = (scaled % total).argsort(descending=True, stable=True)[:missing]
    quotas[up] += 1
    return [int(quota) for quota in quotas]
