"""Activations with their channels last in memory, whatever the order of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_channels_last(inputs: Any) -> Any:
    """4-dimensional floating-point ``inputs [B, C, H, W]`` with C last in memory; anything else as it is.

    Convolutions follow the order of their input, so parameters and the flat buffer stay as they are. With one channel
    both orders are the same memory, and torch takes the ambiguous strides for channels first: they are set apart here,
    without a copy.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    channels, height, width = inputs.shape[1:]
    if channels == 1 and inputs.is_contiguous():
        return inputs.as_strided(inputs.shape, (height * width, 1, width, 1))
    return inputs.contiguous(memory_format=torch.channels_last)
