"""``FixedSamples``: the samples that every point of a path is measured on; fixed subsets of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import LLPFError
from .data import (
    BatchedData,
    Data,
    DatasetData,
    Reading,
    TensorData,
    batch_length,
    data_digest,
    move_batch,
    sample_set_digest,
)
from .forward import ForwardMode, choose_forward_mode, forward
from .loss import LossReduction
from .precision import as_channels_last, float32_products

#: Samples in memory, or batches that stay as they came.
MaterializedData = TensorData | list[tuple[Any, Any]]


def materialize(data: Data, samples: int | None = None, reading: Reading | None = None) -> MaterializedData:
    """``data`` in memory, read once: a shuffling or augmenting source would measure each point on other samples.

    ``samples``: of batches, read only the first with so many; of a Dataset, as many where not all fit into memory.
    """
    if isinstance(data, BatchedData):
        return data.materialize(samples, reading)
    return data.materialize(samples) if isinstance(data, DatasetData) else data


def sample_count(held: MaterializedData) -> int:
    """Number of samples."""
    return held.count if isinstance(held, TensorData) else sum(batch_length(*batch) for batch in held)


def fixed_subset(held: MaterializedData, size: int) -> MaterializedData:
    """A fixed part of about ``size`` samples: stratified (:func:`stratified_subset`), or whole batches evenly spread.

    Everything where ``size`` is 0 or not less than all.
    """
    if isinstance(held, TensorData):
        chosen = stratified_subset(first_tensor(held.targets), size)
        return held if len(chosen) == held.count else held.subset(chosen)
    count = sample_count(held)
    if size <= 0 or size >= count:
        return held
    batches = max(1, min(len(held), round(len(held) * size / count)))
    return [held[i * len(held) // batches] for i in range(batches)]


def materialized_digest(held: MaterializedData, dtype: torch.dtype) -> str:
    """sha256 of the samples as a network of ``dtype`` sees them: the same for NumPy's float64 as for tensors."""
    cpu = torch.device("cpu")
    if isinstance(held, TensorData):
        return held.to(cpu, dtype).sha256
    return data_digest([move_batch(*batch, cpu, dtype) for batch in held])


def materialized_set_digest(held: MaterializedData, dtype: torch.dtype) -> str:
    """Of the samples as :func:`materialized_digest` sees them, in whatever order."""
    cpu = torch.device("cpu")
    if isinstance(held, TensorData):
        return held.to(cpu, dtype).set_sha256
    return sample_set_digest(move_batch(*batch, cpu, dtype) for batch in held)


class FixedSamples:
    """Inputs and targets, held on one device, in batches that never change.

    Args:
        held: tensors, cut into batches here; or batches, which stay as they came.
        batch_size: of tensors. A last batch of one sample is joined to the one before: normalization over a batch
            cannot take it.
        dtype: of floating values, inputs and targets.
        channels_last: store 4-dimensional inputs so.

    Attributes:
        batches: (inputs, targets, number of samples) of each.
        count: samples in all.
    """

    def __init__(
        self,
        held: MaterializedData,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        def placed(inputs: Any, targets: Any) -> tuple[Any, Any]:
            inputs, targets = move_batch(inputs, targets, device, dtype)
            return (as_channels_last(inputs) if channels_last else inputs), targets

        if isinstance(held, TensorData):
            # Moved whole, then cut: views of one piece of memory.
            inputs, targets = placed(held.inputs, held.targets)
            found: Sequence[tuple[Any, Any]] = list(_cut(inputs, targets, held.count, batch_size))
        else:
            found = [placed(*batch) for batch in held]
        self.batches = [(inputs, targets, batch_length(inputs, targets)) for inputs, targets in found]
        self.count = sum(size for _, _, size in self.batches)
        if self.count == 0:
            raise LLPFError("the data set is empty: there is nothing to evaluate on")

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def weights(self, reduction: LossReduction) -> list[float]:
        """The denominators of the batches' losses; LLPFError where no sample has a label."""
        weights = [reduction.weight(targets, size) for _, targets, size in self.batches]
        if not sum(weights) > 0:
            raise LLPFError(
                f"no sample has a label that counts for the loss {reduction.name}: the mean over none is undefined"
            )
        return weights

    def shares(self, reduction: LossReduction) -> list[float]:
        """What the loss of each batch is multiplied with, so that the sum is the loss of the set.

        A batch with share 0 has no label; its own loss is NaN and does not count.

        Raises:
            LLPFError: no label at all; or a batch whose labels all have class weight 0, where label smoothing has them
                count all the same (:meth:`LossReduction.part` can add that up, a mean of its own cannot).
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
    held: MaterializedData,
    *,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
    batch_size: int = 8,
    training: int = 0,
) -> tuple[ForwardMode, Any, Any]:
    """How ``module``, in eval mode on ``device``, must be run; its output on the first batch, and the batch's targets.

    With ``training``, a number of samples, it must run in that way on so many in training mode too, with gradients;
    ``module`` is then a copy whose buffers may change. A network may do other things with batches of other sizes.

    Raises:
        LLPFError: it cannot be run on the data.
    """

    def first(size: int) -> tuple[Any, Any]:
        few = held.subset(torch.arange(min(held.count, size))) if isinstance(held, TensorData) else held[:1]
        ((inputs, targets, _),) = FixedSamples(few, batch_size=size, device=device, dtype=dtype)
        return inputs, targets

    inputs, targets = first(batch_size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), float32_products("float32", device):
        mode, output = choose_forward_mode(module, inputs, channels_last=channels_last)
        if training and mode.channels_last:
            some, _ = first(training)
            images = any(isinstance(leaf, Tensor) and leaf.dim() == 4 for leaf in pytree.tree_leaves(some))
            # Where neither order can be trained on (normalization of one sample), the search will say so.
            with contextlib.suppress(LLPFError), torch.enable_grad():
                try:
                    if images:
                        forward(module.train(), as_channels_last(some))
                except LLPFError:
                    forward(module, some)
                    mode = replace(mode, channels_last=False)
    return mode, output, targets


def first_tensor(value: Any) -> Tensor:
    """The first tensor in a pytree: what samples are told apart by where a choice among them is stratified."""
    found: Tensor = next(leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return found


def _cut(inputs: Any, targets: Any, count: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and starts[-1] == count - 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            yield inputs[start:end], targets[start:end]
        else:
            yield pytree.tree_map(lambda leaf, a=start, b=end: leaf[a:b], (inputs, targets))


def stratified_subset(targets: Tensor, size: int, seed: int = 0) -> Tensor:
    """``size`` indices into ``targets``, always the same for the same arguments, in ascending order.

    Where the targets are integers ``[n]`` of at most ``size`` classes, every class gives the same share of its members
    (largest remainders first), so that the mean over the subset is an unbiased estimate of the mean over everything;
    otherwise the choice is uniform. Drawn from a generator of its own: torch's global one is not touched.

    Args:
        targets: ``[n, ...]``, any dtype and device.
        size: how many; all ``n`` where it is 0, negative or larger than ``n``.
        seed: of the choice.

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
    """``size`` split in proportion to ``counts [classes]``; the largest remainders are rounded up, ties in order."""
    scaled = counts * size
    total = int(counts.sum())
    quotas = scaled // total
    missing = size - int(quotas.sum())
    up = (scaled % total).argsort(descending=True, stable=True)[:missing]
    quotas[up] += 1
    return [int(quota) for quota in quotas]
