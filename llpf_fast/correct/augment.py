"""The papers' training augmentation, one draw per image, in batches on the images' own device.

torchvision's v2 transforms draw one set of parameters per call, so a batch would share its rotation; and they draw from
torch's global state, which a resumed run could not repeat. Here every draw is a function of (key, image).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LLPFError
from .draw import mix_int, uniform_bits

Augment = Callable[[Tensor, int], Tensor]

#: Value of a black pixel after MNIST's normalisation (mean 0.1307, deviation 0.3081).
_MNIST_BLACK = -0.1307 / 0.3081


def augmentation(name: str) -> Augment | None:
    """The augmentation of a recipe: "none", "mnist" or "cifar".

    Raises:
        LLPFError: another name.
    """
    known: dict[str, Augment | None] = {"none": None, "mnist": rotate_and_shift, "cifar": flip_and_shift}
    if name not in known:
        raise LLPFError(f"augmentation must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def _integers(key: int, stream: int, count: int, bound: int, device: torch.device) -> Tensor:
    """``count`` integers in [0, bound)."""
    lanes = torch.arange(count, device=device)
    return uniform_bits(mix_int(key + stream), lanes) * bound >> 32


def rotate_and_shift(images: Tensor, key: int, *, degrees: float = 5.0, pixels: int = 2) -> Tensor:
    """``[B, C, H, W]``: a rotation within ``degrees`` about the centre, then a shift within ``pixels``; black comes in.

    The authors' MNIST transform (RandomRotation(5), RandomCrop(28, padding=2); nearest neighbour as torchvision's).
    """
    count, _, height, width = images.shape
    device = images.device
    turn = _integers(key, 0, count, 1 << 20, device).float() / (1 << 20)
    angle = (turn * 2.0 - 1.0) * math.radians(degrees)
    dy, dx = (_integers(key, s, count, 2 * pixels + 1, device).float() - pixels for s in (1, 2))
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


def flip_and_shift(images: Tensor, key: int, *, pixels: int = 4) -> Tensor:
    """``[B, C, H, W]``: mirrored with probability one half, then shifted within ``pixels``; edges are reflected.

    The authors' CIFAR transform (RandomHorizontalFlip, RandomCrop(32, padding=4, padding_mode="reflect")).
    """
    count, channels, height, width = images.shape
    device = images.device
    mirrored = _integers(key, 0, count, 2, device).bool()[:, None]
    dy, dx = (_integers(key, s, count, 2 * pixels + 1, device)[:, None] for s in (1, 2))
    columns = torch.arange(width, device=device)
    x = dx + columns
    # The crop is taken from the mirrored, padded image: mirroring its column index is the same picture.
    x = torch.where(mirrored, width + 2 * pixels - 1 - x, x)
    y = dy + torch.arange(height, device=device)
    padded = F.pad(images, [pixels] * 4, mode="reflect")
    batch = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[batch, channel, y[:, None, :, None], x[:, None, None, :]]
