"""Curves fitted to a low expected loss (Garipov et al., arXiv 1802.10026)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...batches.sampling import key_of, uniform_bits
from ...errors import LLPFError
from .curve import Curve, point

#: (vector [P], round) -> loss and gradient [P] on that round's batch.
Gradient = Callable[[Tensor, int], tuple[float, Tensor]]
#: (gradient steps done, gradient steps in all, what is being done)
Progress = Callable[[int, int, str], None]

#: Separates the draws of t from those of batches (0) and augmentation (1).
_STREAM = 2


@dataclass(frozen=True)
class FitSettings:
    """How a curve is fitted: ``steps`` gradient steps of SGD on the inner nodes.

    Rate and momentum are those of the authors' code, whose schedule it also is: constant for half the steps, then
    falling linearly to a hundredth at nine tenths, and staying there. Their weight decay on the curve's points is 0
    here unless set: it is no part of the loss that is compared.
    """

    steps: int
    lr: float = 0.015
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise LLPFError(f"a curve must be fitted for at least 1 gradient step, got {self.steps}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise LLPFError(f"the curve's learning rate must be a positive number, got {self.lr}")


def fit(
    curve: Curve,
    nodes: Tensor,
    gradient: Gradient,
    settings: FitSettings,
    progress: Progress | None = None,
) -> Tensor:
    """Inner nodes that minimise E_t L(theta(t)), t uniform in [0, 1]; the ends stay as they are, bit for bit.

    Each gradient step draws one t and one batch; d theta / d node_i = w_i(t), so the step costs what a step of ordinary
    training costs, and two operations a node.

    Args:
        nodes: ``[nodes, P]``, where to begin; not changed.

    Returns:
        ``[nodes, P]``.

    Raises:
        LLPFError: the loss stops being finite.
    """
    inner = nodes.clone()
    velocity = torch.zeros_like(inner)
    lane = torch.zeros(1, dtype=torch.int64)
    for step in range(settings.steps):
        t = (int(uniform_bits(key_of(settings.seed, 0, step, _STREAM), lane)) + 0.5) / 2**32
        theta = point(curve, inner, t)
        loss, slope = gradient(theta, step)
        if not math.isfinite(loss):
            raise LLPFError(
                f"fitting the curve diverged after {step} steps (loss {loss}); lower its learning rate ({settings.lr})"
            )
        if settings.weight_decay:
            slope = slope.add(theta, alpha=settings.weight_decay)
        rate = settings.lr * _rate(step / settings.steps)
        for i, weight in list(enumerate(curve.weights(t)))[1:-1]:
            velocity[i].mul_(settings.momentum)
            if weight:
                velocity[i].add_(slope, alpha=weight)
            inner[i].sub_(velocity[i], alpha=rate)
        if progress is not None:
            progress(step + 1, settings.steps, f"loss {loss:.4f}")
    return inner


def _rate(done: float) -> float:
    """Share of the learning rate after the share ``done`` of the steps."""
    if done <= 0.5:
        return 1.0
    return max(0.01, 1.0 - (done - 0.5) / 0.4 * 0.99)
