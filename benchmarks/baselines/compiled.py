"""The tick over a flat buffer of equal segments, ``[S, L]``, for ``torch.compile``: the layout that suits it best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _project(p: Tensor, variance: Tensor) -> Tensor:
    found, mean = torch.var_mean(p, dim=1, keepdim=True)
    return mean + (p - mean) * torch.sqrt(variance / found)


def flat_tick(p: Tensor, d: Tensor, variance: Tensor, step: Tensor) -> Tensor:
    """Project, move toward d, project; p, d ``[S, L]`` float32, variance ``[S, 1]``, step ``[2]``."""
    projected = _project(p, variance)
    toward = d - projected
    distance = toward.norm(dim=1, keepdim=True)
    t = torch.where(distance > 0, (step[0] + step[1] * distance) / distance, 0.0).clamp(max=1.0)
    return _project(projected + t * toward, variance)


def flat_tick_(p: Tensor, d: Tensor, variance: Tensor, step: Tensor) -> None:
    p.copy_(flat_tick(p, d, variance, step))


def compiled_tick_() -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """:func:`flat_tick_` through ``torch.compile``; the first call compiles, which takes tens of seconds."""
    compiled: Callable[[Tensor, Tensor, Tensor, Tensor], None] = torch.compile(flat_tick_, dynamic=False)
    return compiled
