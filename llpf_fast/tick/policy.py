"""Which segments a tick moves and projects: flags from layer kinds, stages and the start's own variance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..errors import LLPFError
from ..flat import LayerKind
from ..ops import SegmentFlag

_ONLY_FROM_MODULE = SegmentFlag.FROZEN


def match_layers(names: Sequence[str], patterns: Iterable[str]) -> list[bool]:
    """Which segment names match at least one shell glob; a pattern without any match is refused by name."""
    chosen = [False] * len(names)
    for pattern in patterns:
        hits = [fnmatchcase(name, pattern) for name in names]
        if not any(hits):
            raise LLPFError(f"stage pattern {pattern!r} matches no layer; layers are {', '.join(names[:8])}, ...")
        chosen = [old or hit for old, hit in zip(chosen, hits, strict=True)]
    return chosen


def m2m_flags(
    kinds: Sequence[LayerKind],
    module_flags: Sequence[SegmentFlag],
    target_variance: Tensor,
    active: Sequence[bool],
) -> list[SegmentFlag]:
    """Flags of a model-to-model tick (reading of LLPF in notes/algorithm-facts, A.4).

    Affine parameters of normalization layers and segments whose start has no variance (one element, all equal) move
    but are not projected: there is no sphere to return to. Layers outside the stage are MASKED.
    """
    no_sphere = (target_variance == 0).tolist()
    flags = []
    for kind, own, flat_start, moves in zip(kinds, module_flags, no_sphere, active, strict=True):
        flag = own & _ONLY_FROM_MODULE
        if not moves:
            flag |= SegmentFlag.MASKED
        if kind is LayerKind.NORM or flat_start:
            flag |= SegmentFlag.FREE
        flags.append(flag)
    return flags


def variance_of(moments: Tensor, segments: Tensor) -> Tensor:
    """Unbiased variance ``[S]`` float64 of every segment, pooled over its variance group; 0 for one element.

    ``moments`` is ``[S, 5]`` of the start. Pooling is Chan's formula.
    """
    count = segments[:, 1].double()
    _, group = torch.unique_consecutive(segments[:, 3], return_inverse=True)
    groups = int(group[-1]) + 1 if len(group) else 0

    def total(value: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64, device=value.device).index_add_(0, group, value)

    n = total(count)
    mean = (total(count * moments[:, 0]) / n)[group]
    spread = total(moments[:, 2] + count * (moments[:, 0] - mean) ** 2)
    return torch.where(n > 1, spread / (n - 1).clamp(min=1), 0.0)[group]
