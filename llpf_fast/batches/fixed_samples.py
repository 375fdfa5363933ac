"""``FixedSamples``: the samples that every point of a path is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import LLPFError


class FixedSamples:
    """Inputs and targets, held on one device, in batches that never change.

    Built from tensors ``inputs [n, ...]`` and ``targets [n, ...]``, or (``targets`` None) from an iterable of
    (input, target) batches such as a DataLoader. An iterable is read once and held: a shuffling or augmenting loader
    would otherwise measure each point on other samples. An input may be a tensor, a tuple (positional arguments of the
    model) or a dict (keyword arguments).

    Args:
        batch_size: of tensors; the batches of an iterable are joined to this size where they are tensors of one shape.
        channels_last: store 4-dimensional inputs so.
        dtype: of floating inputs.

    Raises:
        LLPFError: no samples, or other numbers of inputs than of targets.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batches: list[tuple[Any, Any]]
        self.channels_last = False
        values, wanted = as_tensors(inputs) if targets is None else (torch.as_tensor(inputs), torch.as_tensor(targets))
        if wanted is None:
            self.batches = [(_move(x, device, dtype), _move(y, device, None)) for x, y in values]
        else:
            if len(values) != len(wanted):
                raise LLPFError(f"the data set has {len(values)} inputs but {len(wanted)} targets")
            values, wanted = _move(values, device, dtype), wanted.to(device)
            self.channels_last = channels_last and values.dim() == 4 and values.is_floating_point()
            if self.channels_last:
                values = values.contiguous(memory_format=torch.channels_last)
            self.batches = list(zip(values.split(batch_size), wanted.split(batch_size), strict=True))
        self.sizes = [_length(target, value) for value, target in self.batches]
        self.count = sum(self.sizes)
        if self.count == 0:
            raise LLPFError("the data set is empty: there is nothing to evaluate on")

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        """(input, target, number of samples) of each batch."""
        for (value, target), size in zip(self.batches, self.sizes, strict=True):
            yield value, target, size


def call(module: torch.nn.Module, value: Any) -> Any:
    """The module's output on one batch's input."""
    if isinstance(value, Mapping):
        return module(**value)
    if isinstance(value, (tuple, list)):
        return module(*value)
    return module(value)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise LLPFError(f"a batch must be a pair (input, target), the data gave a {type(batch).__name__}")
    return batch[0], batch[1]


def as_tensors(data: Any) -> tuple[Any, Tensor | None]:
    """(inputs ``[n, ...]``, targets ``[n, ...]``) of a pair of tensors, or of an iterable of (input, target) batches.

    The iterable is read once. Where its batches are not tensors that fit together: (list of batches, None).
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return data
    batches = [_pair(batch) for batch in data]
    parts: Iterable[Any] = [part for batch in batches for part in batch]
    if not batches or not all(isinstance(part, Tensor) and part.dim() > 0 for part in parts):
        return batches, None
    first_value, first_target = batches[0]
    fits = all(
        x.shape[1:] == first_value.shape[1:]
        and y.shape[1:] == first_target.shape[1:]
        and len(x) == len(y)
        and x.dtype == first_value.dtype
        and y.dtype == first_target.dtype
        for x, y in batches
    )
    if not fits:
        return batches, None
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _move(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """All tensors of ``value`` on ``device``, floating ones as ``dtype``."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    return pytree.tree_map(moved, value)


def _length(*values: Any) -> int:
    """Number of samples in a batch: the length of its first tensor."""
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return len(leaf)
    return 1


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
