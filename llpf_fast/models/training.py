"""Training endpoints the way the papers do, from a data set in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import LLPFError


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands after one epoch; ``loss`` is the mean over the epoch's batches."""

    epoch: int
    epochs: int
    loss: float


def train_model(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    seed: int,
    epochs: int = 20,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place by SGD on cross entropy; returns it in eval mode.

    ``inputs [n, ...]`` float and ``targets [n]`` int64 live on the model's device. The defaults are the LLPF authors'
    for LeNet5 (20 epochs, lr 0.01, momentum 0.9, batches of 64). Each epoch is one permutation drawn from a generator
    of its own, seeded by ``seed``; the last batch of an epoch may be smaller. Raises :class:`LLPFError` when a loss
    is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    model.train()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        total = torch.zeros((), device=inputs.device)
        batches = order.split(batch_size)
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        mean = float(total) / len(batches)
        if not math.isfinite(mean):
            raise LLPFError(f"training diverged in epoch {epoch} (loss {mean}); lower the learning rate ({lr})")
        if progress is not None:
            progress(TrainingProgress(epoch, epochs, mean))
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch_size: int = 1000) -> float:
    """Fraction of ``inputs [n, ...]`` that ``model``, as it is (train or eval mode), puts in class ``targets [n]``."""
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    )
    return right / len(inputs)
