"""The per-layer tick with ``torch._foreach``: each elementwise step is one call for all tensors.

There is no foreach mean or variance: means are taken tensor by tensor, variances from foreach norms of what is centred.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _project_(p: list[Tensor], variance: list[float]) -> None:
    means = [value.mean() for value in p]
    torch._foreach_sub_(p, means)
    norms = torch._foreach_norm(p)
    scales = [
        v**0.5 * (value.numel() - 1) ** 0.5 / norm if value.numel() > 1 else torch.ones_like(norm)
        for value, v, norm in zip(p, variance, norms, strict=True)
    ]
    torch._foreach_mul_(p, scales)
    torch._foreach_add_(p, means)


@torch.no_grad()
def tick_(p: list[Tensor], d: list[Tensor], variance: list[float], fixed: float, relative: float) -> None:
    """Project, move toward d, project: every tensor of ``p`` in place."""
    _project_(p, variance)
    toward = torch._foreach_sub(d, p)
    distances = torch.stack(torch._foreach_norm(toward))
    t = torch.where(distances > 0, (fixed + relative * distances) / distances, 0.0).clamp(max=1.0)
    torch._foreach_mul_(toward, list(t))
    torch._foreach_add_(p, toward)
    _project_(p, variance)
