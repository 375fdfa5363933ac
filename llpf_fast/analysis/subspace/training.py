"""Training with the parameters held in P0 + M z."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...batches import loss_of
from ...errors import LLPFError
from ...flat import FlatParameters
from ..problem import Problem
from ..vector_network import seeded
from .basis import RandomBasis

_TELL_EVERY = 50


@dataclass(frozen=True)
class SubspaceSettings:
    """How z is trained: ``steps`` of Adam or SGD with momentum 0.9, ``lr`` falling linearly to 0 over the last half."""

    steps: int = 2000
    lr: float = 0.03
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    memory: int = 2**29

    def validate(self) -> None:
        for name in ("steps", "lr", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.optimizer not in ("adam", "sgd"):
            raise LLPFError(f"the optimizer is adam or sgd, got {self.optimizer!r}")


def train_in_subspace(
    problem: Problem,
    start: Mapping[str, Tensor],
    dimension: int,
    settings: SubspaceSettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Tensor]:
    """Train from ``start`` in a random affine subspace of ``dimension`` dimensions through it; returns the state.

    theta = P0 + M z, z from 0; the gradient in z is M^T g. Buffers (BatchNorm statistics) are trained as always. The
    subspace follows from ``seed``, the batches from the seed of ``problem``.

    Raises:
        LLPFError: a dimension that does not exist; a loss that is not finite.
    """
    settings = settings or SubspaceSettings()
    settings.validate()
    flat = FlatParameters(problem.copy())
    flat.load(start)
    origin = flat.data.clone()
    # 0 in the buffer's padding and where parameters are frozen.
    mask = flat.flatten({name: torch.full_like(p, p.requires_grad) for name, p in flat.module.named_parameters()})
    basis = RandomBasis(mask, dimension, seed, memory=settings.memory)
    z = torch.zeros(dimension, dtype=origin.dtype, device=origin.device, requires_grad=True)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam([z], lr=settings.lr)
    else:
        optimizer = torch.optim.SGD([z], lr=settings.lr, momentum=0.9)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / settings.steps)))
    batches = problem.batches(settings.batch_size)
    flat.module.train()
    # Dropout draws from torch's own generator: the result must not depend on where that stands.
    with seeded(problem.seed, problem.device):
        for step in range(settings.steps):
            flat.zero_grad()
            loss = loss_of(flat.module, problem.loss_fn, *batches.draw(step))
            loss.backward()
            flat.ensure_gradients()
            z.grad = basis.coordinates(flat.grad)
            optimizer.step()
            rates.step()
            with torch.no_grad():
                flat.data.copy_(origin + basis.combine(z.detach()))
            if (step + 1) % _TELL_EVERY == 0 or step + 1 == settings.steps:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise LLPFError(f"the training loss became {value} in {dimension} dimensions; try a smaller lr")
                if progress is not None:
                    progress(step + 1, settings.steps, f"loss {value:.4f}")
    return flat.state_dict()
