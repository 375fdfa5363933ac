"""``ImageData``, which every reader returns: a data set as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LLPFError


@dataclass(frozen=True)
class ImageData:
    """A training and a test split, in memory, on the CPU.

    Attributes:
        train_inputs, test_inputs: contiguous float32 ``[n, C, H, W]``, normalised as ``(pixel - mean) / std`` with
            pixels in 0..1.
        train_targets, test_targets: int64 ``[n]`` in ``0 .. classes - 1``.
        label: what figures and reports call the data.
        mean, std: one value a channel.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int
    label: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.train_inputs, self.train_targets

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.test_inputs, self.test_targets


def from_pixels(
    name: str,
    label: str,
    classes: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    scale: float = 255.0,
) -> ImageData:
    """Check and normalise what a reader read from its files.

    Args:
        train, test: pixels ``[n, C, H, W]`` in 0..``scale``, of any dtype, and targets ``[n]``.
        mean, std: of pixels in 0..1, one value a channel.

    Raises:
        LLPFError: an empty split, targets that are no classes, numbers of images and targets that differ.
    """
    checked = []
    for split, (images, targets) in (("training", train), ("test", test)):
        if len(images) == 0:
            raise LLPFError(f"data {name!r} has no {split} images: is the folder the right one, are its files whole?")
        if len(images) != len(targets):
            raise LLPFError(f"data {name!r} has {len(images)} {split} images but {len(targets)} targets")
        targets = targets.to(torch.int64)
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise LLPFError(f"data {name!r} has {split} targets from {low} to {high}, expected 0 to {classes - 1}")
        checked.append((_normalised(images, mean, std, scale), targets))
    (train_inputs, train_targets), (test_inputs, test_targets) = checked
    return ImageData(
        name, train_inputs, train_targets, test_inputs, test_targets, classes, label, tuple(mean), tuple(std)
    )


def _normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> Tensor:
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32).view(shape)
    divisor = torch.tensor(std, dtype=torch.float32).view(shape)
    return (images.to(torch.float32) / scale).sub_(shift).div_(divisor).contiguous()
