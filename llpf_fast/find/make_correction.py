"""The correction that the settings ask for, on the data that the caller has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..batches import LoaderBatches, LossFunction, TensorBatches
from ..batches.augment import augmentation
from ..correct import Correction
from ..flat import FlatParameters
from .settings import Settings

TrainingData = tuple[Tensor, Tensor] | Iterable[Any]


def on_device(train: TrainingData, device: torch.device) -> TrainingData:
    """(inputs, targets) tensors on ``device``; anything else as it is."""
    if isinstance(train, tuple) and len(train) == 2 and isinstance(train[0], Tensor):
        return train[0].to(device), train[1].to(device)
    return train


def channels_last(settings: Settings, device: torch.device) -> bool:
    """Whether images are to lie so in memory on ``device``."""
    chosen = settings.correction.channels_last
    return device.type == "cpu" if chosen is None else chosen


def tensor_batches(settings: Settings, inputs: Tensor, targets: Tensor) -> TensorBatches:
    """Batches drawn by counter, augmented as the settings ask; equal for all paths of one seed."""
    return TensorBatches(
        inputs,
        targets,
        settings.correction.batch_size,
        seed=settings.seed,
        augment=augmentation(settings.augmentation),
        channels_last=channels_last(settings, inputs.device),
    )


def rounds_at_once(settings: Settings) -> int:
    """Gradient steps after which a correction hands back at the latest: one window where its points are averaged."""
    averages = settings.pacing == "adaptive" and settings.pace.average is not None
    return settings.correction.min_rounds if averages else settings.correction.max_rounds


def training(settings: Settings) -> dict[str, Any]:
    """The arguments that a correction of one path and a stacked one have in common."""
    c = settings.correction
    return {
        "threshold": c.threshold,
        "min_rounds": c.min_rounds,
        "max_rounds": rounds_at_once(settings),
        "lr": c.lr,
        "momentum": c.momentum,
        "weight_decay": c.weight_decay,
        "nesterov": c.nesterov,
        "keep_momentum": c.keep_momentum,
        "capture": c.capture,
    }


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
    batches: Any
    if isinstance(train, tuple):
        batches = tensor_batches(settings, *train)
    else:
        batches = LoaderBatches(train, device, channels_last=channels_last(settings, device))
    return Correction(
        flat, loss_fn, batches, optimizer=optimizer, precision=c.precision, compile=c.compile, **training(settings)
    )
