"""How many paths are searched at once where nobody says a number."""

from __future__ import annotations

import torch
from torch import nn

from .stacked_finder import LEAST_GPU

#: On a GPU: networks whose kernels leave most of it idle, and as many of them as fill it. Not measured yet.
_SMALL_GPU, _MOST_GPU = 1_000_000, 256
#: On a CPU a stack saves the fixed cost of each operation and nothing else. Gains over the same paths in turn, one
#: core, perceptrons of 9, 26, 51 and 85 thousand parameters: eight paths 2.0, 1.5, 1.2 and 1.3, sixteen 2.9, 2.1, 1.4
#: and 1.4; four of the smallest 1.0 to 1.1.
_SMALL_CPU, _LEAST_CPU, _MOST_CPU = 50_000, 8, 16


def choose_together(module: nn.Module, device: torch.device, paths: int) -> int:
    """Paths at a time for ``paths`` searches of this network; 1 where a stack would not be faster.

    A choice by size, kind and number alone, never by a clock: the same command gives the same bits. Networks with
    convolutions are left alone on a CPU: LeNet5s as a stack train 0.7 times as fast as in turn
    (benchmarks/cases/many_paths.py).
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if device.type == "cuda":
        return min(paths, _MOST_GPU) if size <= _SMALL_GPU and paths >= LEAST_GPU else 1
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())
    return min(paths, _MOST_CPU) if size <= _SMALL_CPU and not convolves and paths >= _LEAST_CPU else 1
