"""Training endpoints the way the papers do, from a data set in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from ..batches.sampling import key_of
from ..errors import LLPFError

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["constant", "cosine", "steps", "one-cycle"]


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
    optimizer: OptimizerName = "sgd",
    schedule: ScheduleName = "constant",
    lr_epochs: Sequence[int] = (),
    warmup_epochs: int = 0,
    label_smoothing: float = 0.0,
    augment: Callable[[Tensor, int], Tensor] | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place on cross entropy; returns it in eval mode.

    ``inputs [n, ...]`` float and ``targets [n]`` int64 live on the model's device. The defaults are the LLPF authors'
    for LeNet5 (20 epochs of SGD, lr 0.01, momentum 0.9, batches of 64). Each epoch is one permutation drawn from a
    generator of its own, seeded by ``seed``; the last batch of an epoch may be smaller.

    Args:
        momentum: of SGD; AdamW keeps torch's betas.
        schedule: of the learning rate, step by step: "constant"; "cosine" from ``lr`` to 0; "steps", a tenth after
            each of ``lr_epochs`` epochs; "one-cycle", torch's OneCycleLR with ``lr`` as its highest.
        warmup_epochs: the learning rate first rises linearly from a hundredth; within ``epochs``, not with "one-cycle",
            which has a rise of its own.
        augment: (images of a batch, 32-bit key) -> images, as :func:`llpf_fast.batches.augment.augmentation` gives it.
        progress: called after each epoch; the model may be read then (checkpoints), in train mode.

    Raises:
        LLPFError: options that do not fit each other; a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = _optimizer(model, optimizer, lr, momentum, weight_decay)
    rates = _schedule(updates, schedule, epochs, math.ceil(len(inputs) / batch_size), lr, lr_epochs, warmup_epochs)
    model.train()
    step = 0
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        total = torch.zeros((), device=inputs.device)
        batches = order.split(batch_size)
        for batch in batches:
            images = inputs[batch]
            if augment is not None:
                images = augment(images, key_of(seed, 0, step, 1))
            updates.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), targets[batch], label_smoothing=label_smoothing)
            loss.backward()
            updates.step()
            rates.step()
            step += 1
            total += loss.detach()
        mean = float(total) / len(batches)
        if not math.isfinite(mean):
            raise LLPFError(f"training diverged in epoch {epoch} (loss {mean}); lower the learning rate ({lr})")
        if progress is not None:
            progress(TrainingProgress(epoch, epochs, mean))
    return model.eval()


def _optimizer(
    model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD | torch.optim.AdamW:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    raise LLPFError(f"optimizer must be one of {', '.join(get_args(OptimizerName))}, got {name!r}")


def _schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    epochs: int,
    epoch_steps: int,
    lr: float,
    lr_epochs: Sequence[int],
    warmup_epochs: int,
) -> lr_scheduler.LRScheduler:
    """One of torch's schedules, stepped after every batch."""
    if name not in get_args(ScheduleName):
        raise LLPFError(f"lr schedule must be one of {', '.join(get_args(ScheduleName))}, got {name!r}")
    if bool(lr_epochs) != (name == "steps"):
        raise LLPFError(f"lr schedule {name!r} {'needs' if name == 'steps' else 'takes no'} epochs at which to step")
    if name == "one-cycle":
        if warmup_epochs:
            raise LLPFError("lr schedule 'one-cycle' has a rise of its own: leave out the warm-up epochs")
        # One step beyond the last batch: the schedule is advanced once more after it.
        return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * epoch_steps + 1)
    if not 0 <= warmup_epochs < min([max(epochs, 1), *lr_epochs]):
        raise LLPFError(f"warm-up of {warmup_epochs} epochs must end before epoch {min([epochs, *lr_epochs])}")
    warmup = warmup_epochs * epoch_steps
    rest: lr_scheduler.LRScheduler
    if name == "cosine":
        rest = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs * epoch_steps - warmup, 1))
    elif name == "steps":
        rest = lr_scheduler.MultiStepLR(optimizer, [at * epoch_steps - warmup for at in lr_epochs])
    else:
        rest = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return rest
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, rest], milestones=[warmup])


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch_size: int = 1000) -> float:
    """Fraction of ``inputs [n, ...]`` that ``model``, as it is (train or eval mode), puts in class ``targets [n]``."""
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    )
    return right / len(inputs)
