"""Mini-batches of data in memory, for the analyses that train."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..batches import BatchedData, LoaderBatches, LossReduction, TensorBatches, TensorData
from ..batches.fixed_samples import MaterializedData


def mini_batches(
    held: MaterializedData,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    reduction: LossReduction,
    seed: int,
    path: int = 0,
) -> TensorBatches | LoaderBatches:
    """Of samples: ``batch_size`` drawn with replacement, a function of (seed, path, round). Batches come as they are.

    Both leave out batches without a label that counts (``reduction``).
    """
    if isinstance(held, TensorData):
        placed = held.to(device, dtype)
        return TensorBatches(placed.inputs, placed.targets, batch_size, seed=seed, path=path, reduction=reduction)
    batches: list[Any] = list(held)
    return LoaderBatches(BatchedData(batches, "training data"), device, dtype=dtype, reduction=reduction)


def batches_an_epoch(held: MaterializedData, batch_size: int) -> int:
    """How many mini-batches have as many samples as there are."""
    return math.ceil(held.count / batch_size) if isinstance(held, TensorData) else len(held)
