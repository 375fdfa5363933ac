"""All points of a complex trained together, on random places of its simplices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...batches import LossFunction, loss_of
from ...batches.sampling import Batches
from ...errors import LLPFError
from ...flat import FlatParameters
from .hyperplane import Hyperplane

_TELL_EVERY = 50


def train_surface(
    flat: FlatParameters,
    values: Tensor,
    planes: Sequence[Hyperplane],
    simplices: Sequence[Sequence[int]],
    loss_fn: LossFunction,
    batches: Batches,
    *,
    steps: int,
    lr: float,
    momentum: float,
    seed: int,
    progress: Callable[[int, str], None] | None = None,
) -> Tensor:
    """Lower the mean loss over all simplices by moving the vertices that have a plane, the last ``len(planes)``.

    Each step draws a simplex and a uniformly distributed point x = sum_v w_v V_v of it, and moves vertex v along
    w_v times the gradient at x, as curve finding does for one line (Garipov et al., arXiv 1802.10026, eq. 2, over
    simplices instead: ours), inside the vertex's plane. ``lr`` is multiplied by the number of vertices of a simplex,
    for the weights are that much smaller than 1, and falls linearly to 0.

    Args:
        values: ``[V, N]`` flat vertices; not changed. Returns their new values.

    Raises:
        LLPFError: the loss is not finite.
    """
    fixed = len(values) - len(planes)
    values = values.clone()
    velocity = torch.zeros_like(values[fixed:])
    draws = torch.Generator().manual_seed(seed)
    recent = 0.0
    flat.module.train()
    for step in range(steps):
        simplex = simplices[int(torch.randint(len(simplices), (), generator=draws))]
        # Normalised exponentials are uniform on the simplex.
        weights = torch.empty(len(simplex), dtype=torch.float64).exponential_(generator=draws)
        weights = (weights / weights.sum()).to(values)
        flat.data.copy_(weights @ values[list(simplex)])
        flat.zero_grad()
        loss = loss_of(flat.module, loss_fn, *batches.draw(step))
        loss.backward()
        flat.ensure_gradients()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LLPFError(f"the training loss became {value} in surface step {step + 1}; try a smaller lr ({lr})")
        velocity.mul_(momentum)
        rate = lr * len(simplex) * (1 - step / steps)
        for vertex, weight in zip(simplex, weights, strict=True):
            if vertex >= fixed:
                velocity[vertex - fixed].add_(flat.grad, alpha=float(weight))
        for number, plane in enumerate(planes):
            plane.project_point_(values[fixed + number].sub_(velocity[number], alpha=rate))
        recent += (value - recent) / min(step + 1, _TELL_EVERY)
        if progress is not None and ((step + 1) % _TELL_EVERY == 0 or step + 1 == steps):
            progress(step + 1, f"surface  loss {recent:.4f}")
    return values
