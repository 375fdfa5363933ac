"""``torch.optim.SGD`` over separate tensors, fused or foreach, as a training loop calls it."""

from __future__ import annotations

import torch
from torch import Tensor


def sgd(p: list[Tensor], g: list[Tensor], *, how: str, lr: float, momentum: float) -> torch.optim.SGD:
    """An optimiser over ``p``, which require gradients from now on and have ``g``; ``how``: "fused" or "foreach"."""
    for value, gradient in zip(p, g, strict=True):
        value.requires_grad_(True)
        value.grad = gradient
    return torch.optim.SGD(p, lr=lr, momentum=momentum, fused=how == "fused", foreach=how == "foreach")
