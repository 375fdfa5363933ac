"""The papers' training augmentation, one draw per image, in batches on the images' own device.

torchvision's v2 transforms draw one set of parameters per call, so a batch would share its rotation; and they draw from
torch's global state, which a resumed run could not repeat. Here every draw is a function of (key, image).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LLPFError
from .sampling import hash32_int, random_bits

#: Value of a black pixel after MNIST's normalisation (mean 0.1307, deviation 0.3081).
_MNIST_BLACK = -0.1307 / 0.3081


class _Drawn:
    """What both augmentations share: the integers of a batch from a key, one row of ``bounds`` each."""

    bounds: tuple[int, ...]

    def __call__(self, images: Tensor, key: int) -> Tensor:
        """``images [B, C, H, W]`` with draws of ``key`` (32 bits)."""
        lanes = torch.arange(len(images), device=images.device)
        rows = [random_bits(hash32_int(key + i), lanes) * bound >> 32 for i, bound in enumerate(self.bounds)]
        return self.apply(images, torch.stack(rows))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """``images [B, C, H, W]`` with the integers ``draws [len(bounds), B]``."""
        raise NotImplementedError


class RotateAndShift(_Drawn):
    """``[B, C, H, W]``: a rotation within ``degrees`` about the centre, then a shift within ``pixels``; black comes in.

    The authors' MNIST transform (RandomRotation(5), RandomCrop(28, padding=2); nearest neighbour as torchvision's).
    """

    def __init__(self, *, degrees: float = 5.0, pixels: int = 2) -> None:
        self._degrees, self._pixels = degrees, pixels
        self.bounds = (1 << 20, 2 * pixels + 1, 2 * pixels + 1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        return _rotated(images, draws, self._degrees, self._pixels)


class FlipAndShift(_Drawn):
    """``[B, C, H, W]``: mirrored with probability one half, then shifted within ``pixels``; edges are reflected.

    The authors' CIFAR transform (RandomHorizontalFlip, RandomCrop(32, padding=4, padding_mode="reflect")).
    """

    def __init__(self, *, pixels: int = 4) -> None:
        self._pixels = pixels
        self.bounds = (2, 2 * pixels + 1, 2 * pixels + 1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        return _flipped(images, draws, self._pixels)


def augmentation(name: str) -> RotateAndShift | FlipAndShift | None:
    """The augmentation of a recipe: "none", "mnist" or "cifar".

    Raises:
        LLPFError: another name.
    """
    known = {"none": None, "mnist": RotateAndShift(), "cifar": FlipAndShift()}
    if name not in known:
        raise LLPFError(f"augmentation must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def rotate_and_shift(images: Tensor, key: int, *, degrees: float = 5.0, pixels: int = 2) -> Tensor:
    """:class:`RotateAndShift` with draws of ``key``."""
    return RotateAndShift(degrees=degrees, pixels=pixels)(images, key)


def flip_and_shift(images: Tensor, key: int, *, pixels: int = 4) -> Tensor:
    """:class:`FlipAndShift` with draws of ``key``."""
    return FlipAndShift(pixels=pixels)(images, key)


def _rotated(images: Tensor, draws: Tensor, degrees: float, pixels: int) -> Tensor:
    height, width = images.shape[2:]
    turn = draws[0].float() / (1 << 20)
    angle = (turn * 2.0 - 1.0) * math.radians(degrees)
    dy, dx = (draws[1:3].float() - pixels).unbind()
    cos, sin = angle.cos(), angle.sin()
    # grid_sample's coordinates run from -1 to 1; a pixel is 2 / size of that.
    back_x, back_y = -dx * 2.0 / width, -dy * 2.0 / height
    rows = [
        torch.stack([cos, -sin * height / width, cos * back_x - sin * back_y], 1),
        torch.stack([sin * width / height, cos, sin * back_x + cos * back_y], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images - _MNIST_BLACK, grid.to(images.dtype), mode="nearest", align_corners=False)
    return moved + _MNIST_BLACK


def _flipped(images: Tensor, draws: Tensor, pixels: int) -> Tensor:
    count, channels, height, width = images.shape
    device = images.device
    mirrored = draws[0].bool()[:, None]
    dy, dx = draws[1][:, None], draws[2][:, None]
    columns = torch.arange(width, device=device)
    x = dx + columns
    # The crop is taken from the mirrored, padded image: mirroring its column index is the same picture.
    x = torch.where(mirrored, width + 2 * pixels - 1 - x, x)
    y = dy + torch.arange(height, device=device)
    padded = F.pad(images, [pixels] * 4, mode="reflect")
    batch = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[batch, channel, y[:, None, :, None], x[:, None, None, :]]
