"""How many paths are searched at once where nobody says a number."""

from __future__ import annotations

import torch
from torch import nn

from .stacked_finder import LEAST_CPU, LEAST_GPU

#: On a GPU: networks whose kernels leave most of it idle, and as many of them as fill it.
_SMALL_GPU, _MOST_GPU = 1_000_000, 256
#: On a CPU a stack saves the fixed cost of each operation, nothing else.
_SMALL_CPU, _MOST_CPU = 100_000, 16


def choose_together(module: nn.Module, device: torch.device, paths: int) -> int:
    """Paths at a time for ``paths`` searches of this network; 1 where a stack would not be faster.

    A choice by size, kind and number alone, never by a clock: the same command gives the same bits. On one CPU core
    (benchmarks/cases/many_paths.py) sixteen digits perceptrons train 2 to 3 times as fast as in turn and sixteen
    LeNet5s 0.9 times, so networks with convolutions are left alone there.
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if device.type == "cuda":
        return min(paths, _MOST_GPU) if size <= _SMALL_GPU and paths >= LEAST_GPU else 1
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())
    return min(paths, _MOST_CPU) if size <= _SMALL_CPU and not convolves and paths >= LEAST_CPU else 1
