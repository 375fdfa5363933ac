"""The augmentation of the papers' training, drawn for each image of a batch, on the device of the images.

torchvision's v2 transforms draw one set of parameters per call, so a batch would share one rotation; and they draw from
torch's global state, which a resumed run could not repeat. Here every draw is a function of (key, image).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LLPFError
from .sampling import random_integers

#: Value of a black pixel after MNIST's normalization (mean 0.1307, deviation 0.3081).
_MNIST_BLACK = -0.1307 / 0.3081


class _ImageAugmentation:
    """An :class:`~llpf_fast.batches.sampling.Augmentation`, which can also be called with a key."""

    bounds: tuple[int, ...]

    def __call__(self, images: Tensor, key: int) -> Tensor:
        """``images [B, C, H, W]`` augmented by the draws of ``key`` (32 bits)."""
        columns = torch.arange(len(images), device=images.device)
        return self.apply(images, random_integers(key, self.bounds, columns))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """``images [B, C, H, W]`` augmented by the integers ``draws [len(bounds), B]``."""
        raise NotImplementedError


class RotateAndShift(_ImageAugmentation):
    """A rotation within ``degrees`` about the centre, then a shift within ``pixels``; black fills the border.

    The authors' MNIST transform (RandomRotation(5), RandomCrop(28, padding=2); nearest neighbour as torchvision's).
    """

    def __init__(self, *, degrees: float = 5.0, pixels: int = 2) -> None:
        self._degrees, self._pixels = degrees, pixels
        self.bounds = (1 << 20, 2 * pixels + 1, 2 * pixels + 1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[2:]
        angle = (draws[0].float() / (1 << 20) * 2.0 - 1.0) * math.radians(self._degrees)
        dy, dx = (draws[1:3].float() - self._pixels).unbind()
        cos, sin = angle.cos(), angle.sin()
        # grid_sample's coordinates run from -1 to 1: a pixel is 2 / size.
        back_x, back_y = -dx * 2.0 / width, -dy * 2.0 / height
        rows = [
            torch.stack([cos, -sin * height / width, cos * back_x - sin * back_y], 1),
            torch.stack([sin * width / height, cos, sin * back_x + cos * back_y], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        moved = F.grid_sample(images - _MNIST_BLACK, grid.to(images.dtype), mode="nearest", align_corners=False)
        return moved + _MNIST_BLACK


class FlipAndShift(_ImageAugmentation):
    """A horizontal flip with probability one half, then a shift within ``pixels``; edges are reflected.

    The authors' CIFAR transform (RandomHorizontalFlip, RandomCrop(32, padding=4, padding_mode="reflect")).
    """

    def __init__(self, *, pixels: int = 4) -> None:
        self._pixels = pixels
        self.bounds = (2, 2 * pixels + 1, 2 * pixels + 1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        device, pixels = images.device, self._pixels
        flipped = draws[0].bool()[:, None]
        dy, dx = draws[1][:, None], draws[2][:, None]
        x = dx + torch.arange(width, device=device)
        # The crop of a flipped, padded image has the flipped column index.
        x = torch.where(flipped, width + 2 * pixels - 1 - x, x)
        y = dy + torch.arange(height, device=device)
        padded = F.pad(images, [pixels] * 4, mode="reflect")
        batch = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[:, None, None]
        return padded[batch, channel, y[:, None, :, None], x[:, None, None, :]]


def augmentation(name: str) -> RotateAndShift | FlipAndShift | None:
    """The augmentation of a recipe: "none", "mnist" or "cifar".

    Raises:
        LLPFError: another name.
    """
    known = {"none": None, "mnist": RotateAndShift(), "cifar": FlipAndShift()}
    if name not in known:
        raise LLPFError(f"augmentation must be one of {', '.join(known)}, got {name!r}")
    return known[name]
