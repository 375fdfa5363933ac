"""The correction that the settings ask for, on the data that the caller has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..correct import Correction, LoaderBatches, LossFunction, TensorBatches
from ..correct.augment import augmentation
from ..flat import FlatParameters
from .settings import Settings

TrainingData = tuple[Tensor, Tensor] | Iterable[Any]


def on_device(train: TrainingData, device: torch.device) -> TrainingData:
    """(inputs, targets) tensors on ``device``; anything else as it is."""
    if isinstance(train, tuple) and len(train) == 2 and isinstance(train[0], Tensor):
        return train[0].to(device), train[1].to(device)
    return train


def tensor_batches(settings: Settings, inputs: Tensor, targets: Tensor) -> TensorBatches:
    """Batches drawn by counter, augmented as the settings ask; equal for all paths of one seed."""
    augment = augmentation(settings.augmentation)
    return TensorBatches(inputs, targets, settings.correction.batch_size, seed=settings.seed, augment=augment)


def make_correction(
    settings: Settings,
    flat: FlatParameters,
    loss_fn: LossFunction,
    train: TrainingData,
    optimizer: torch.optim.Optimizer | None,
) -> Correction:
    """Batches drawn from tensors by the counter-based generator, or taken from a loader in its own order."""
    c = settings.correction
    device = flat.data.device
    batches: Any = tensor_batches(settings, *train) if isinstance(train, tuple) else LoaderBatches(train, device)
    return Correction(
        flat,
        loss_fn,
        batches,
        threshold=c.threshold,
        min_rounds=c.min_rounds,
        max_rounds=c.max_rounds,
        lr=c.lr,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        nesterov=c.nesterov,
        keep_momentum=c.keep_momentum,
        optimizer=optimizer,
    )
