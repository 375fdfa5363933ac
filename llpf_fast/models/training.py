"""Training endpoints the way the papers do, from a data set in memory."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from ..batches.forward import first_line, forward
from ..batches.loss import NO_GRADIENT, LossFunction, LossReduction, batch_loss, chosen_loss, is_classification
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
    loss_fn: LossFunction | None = None,
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
    """Train ``model`` in place; returns it in eval mode.

    ``inputs [n, ...]`` and ``targets [n, ...]`` live on the model's device. The defaults are the LLPF authors' for
    LeNet5 (20 epochs of SGD, lr 0.01, momentum 0.9, batches of 64). Each epoch is one permutation drawn from a
    generator of its own, seeded by ``seed``; the last batch of an epoch may be smaller.

    Args:
        loss_fn: (model output, targets) -> mean loss. When missing, cross-entropy, where outputs and targets are those
            of classification.
        momentum: of SGD; AdamW keeps torch's betas.
        schedule: of the learning rate, step by step: "constant"; "cosine" from ``lr`` to 0; "steps", a tenth after
            each of ``lr_epochs`` epochs; "one-cycle", torch's OneCycleLR with ``lr`` as its highest.
        warmup_epochs: the learning rate first rises linearly from a hundredth; within ``epochs``, not with "one-cycle",
            which has a rise of its own.
        label_smoothing: of cross-entropy.
        augment: (images of a batch, 32-bit key) -> images, as :func:`llpf_fast.batches.augment.augmentation` gives it.
        progress: called after each epoch; the model may be read then (checkpoints), in train mode.

    Raises:
        LLPFError: before the first step, options that do not fit each other, a network or a loss that fails on a
            batch, or on the last one of an epoch (BatchNorm takes no batch of one sample); later, a loss that is not
            finite.
    """
    if label_smoothing and loss_fn not in (None, F.cross_entropy):
        raise LLPFError("label smoothing belongs to cross-entropy: leave it out, or the loss")
    generator = torch.Generator().manual_seed(seed)
    updates = _optimizer(model, optimizer, lr, momentum, weight_decay)
    rates = _schedule(updates, schedule, epochs, math.ceil(len(inputs) / batch_size), lr, lr_epochs, warmup_epochs)
    model.train()
    _refuse_rest(model, loss_fn, inputs, targets, batch_size)
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
            output = forward(model, images)
            if step == 0:
                loss_fn = _chosen(loss_fn, output, targets, batch)
                if label_smoothing:
                    loss_fn = functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
            assert loss_fn is not None
            loss = batch_loss(loss_fn, output, targets[batch])
            _step(loss, updates)
            rates.step()
            step += 1
            total += loss.detach().reshape(())
        mean = float(total) / len(batches)
        if not math.isfinite(mean):
            raise LLPFError(f"training diverged in epoch {epoch} (loss {mean}); lower the learning rate ({lr})")
        if progress is not None:
            progress(TrainingProgress(epoch, epochs, mean))
    return model.eval()


def _step(loss: Tensor, updates: torch.optim.Optimizer) -> None:
    if not loss.requires_grad:
        raise LLPFError(NO_GRADIENT)
    try:
        loss.backward()
        updates.step()
    except RuntimeError as error:
        raise LLPFError(f"no gradient step can be taken: {first_line(error)}") from error


def _chosen(loss_fn: LossFunction | None, output: Any, targets: Tensor, batch: Tensor) -> LossFunction:
    """The loss for ``output``, of the samples ``batch`` of those with ``targets``."""
    loss_fn = chosen_loss(loss_fn, output, targets[batch])
    if loss_fn is F.cross_entropy and isinstance(output, Tensor) and not targets.is_floating_point():
        _check_classes(output, targets)
    return loss_fn


def _refuse_rest(
    model: nn.Module, loss_fn: LossFunction | None, inputs: Tensor, targets: Tensor, batch_size: int
) -> None:
    """LLPFError where ``model`` takes whole batches, but not the smaller last one of an epoch; nothing is changed."""
    rest = len(inputs) % batch_size
    if len(inputs) < batch_size or rest == 0:
        return

    def run(count: int) -> None:
        batch = torch.arange(count, device=inputs.device)
        output = forward(model, inputs[batch])
        batch_loss(_chosen(loss_fn, output, targets, batch), output, targets[batch])

    with _unchanged(model, inputs.device):
        try:
            run(rest)
        except LLPFError as error:
            run(batch_size)
            raise LLPFError(
                f"the last batch of an epoch would hold {rest:,} of {len(inputs):,} samples, and {error}; choose "
                f"another batch size than {batch_size}"
            ) from error


def _check_classes(output: Tensor, targets: Tensor) -> None:
    """On a GPU a class without an output would end the process."""
    highest = int(targets.max())
    if output.dim() > 1 and highest >= output.shape[1]:
        raise LLPFError(
            f"the network has {output.shape[1]} outputs, but the targets name classes up to {highest}: give it at "
            f"least {highest + 1}"
        )


@contextlib.contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers and random states are afterwards what they were."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in kept:
                    module._buffers[name] = buffer.copy_(value)


def _optimizer(
    model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD | torch.optim.AdamW:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LLPFError("the network has no parameter that trains: are all frozen?")
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
        int((forward(model, x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    )
    return right / len(inputs)


@torch.no_grad()
def mean_loss(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction, *, batch_size: int = 1000
) -> float:
    """``loss_fn`` over ``inputs [n, ...]`` and ``targets [n, ...]``, ``model`` as it is.

    The value of one call on all of them for torch's own losses; else the mean over batches, by their samples.
    """
    reduction = LossReduction(loss_fn)
    total = weight = 0.0
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        share = reduction.weight(y, len(x))
        if share:
            total += share * float(batch_loss(loss_fn, forward(model, x), y))
            weight += share
    if reduction.kind == "sum":
        return total
    return total / weight if weight else math.nan


@torch.no_grad()
def classifies(model: nn.Module, inputs: Tensor, targets: Tensor) -> bool:
    """Whether ``model`` gives ``inputs [n, ...]`` one score a class, and ``targets [n]`` are classes."""
    output: Any = forward(model, inputs[:2])
    return is_classification(output, targets[:2]) and output.dim() == 2
