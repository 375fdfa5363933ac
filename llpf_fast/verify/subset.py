"""Fixed subsets of a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LLPFError


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
