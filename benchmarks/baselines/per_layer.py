"""The tick written straight from the paper (LLPF, arXiv 2505.02604) over a state dict, lean: no copies, no records."""

from __future__ import annotations

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def project_(p: Tensor, variance: float) -> None:
    """Put p on its variance sphere, with the same mean."""
    if p.numel() > 1:
        measured, mean = torch.var_mean(p)
        p.sub_(mean).mul_(torch.sqrt(variance / measured)).add_(mean)


@torch.no_grad()
def tick_(p: StateDict, d: StateDict, variance: dict[str, float], fixed: float, relative: float) -> None:
    """Project what training left, move toward d, project: every tensor of ``p`` in place."""
    for name, value in p.items():
        project_(value, variance[name])
        toward = d[name] - value
        distance = toward.norm()
        t = torch.where(distance > 0, (fixed + relative * distance) / distance, 0.0).clamp(max=1.0)
        value.add_(toward.mul_(t))
        project_(value, variance[name])
