"""MNIST, CIFAR-10 and CIFAR-100, read by torchvision from a folder that the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError, first_line, require
from .dataset import ImageData, from_pixels

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
_CIFAR100_STD = (0.2673, 0.2564, 0.2762)


def load_mnist(root: Path | None, download: bool = False) -> ImageData:
    """60,000 + 10,000 images ``[n, 1, 28, 28]`` from ``root/MNIST/raw``, mean 0.1307, standard deviation 0.3081."""

    def split(dataset: Any) -> tuple[Tensor, Tensor]:
        return dataset.data.unsqueeze(1), dataset.targets

    train, test = _read("mnist", "MNIST", "MNIST/raw", root, download, split)
    return from_pixels("mnist", "MNIST", 10, train, test, (0.1307,), (0.3081,))


def load_cifar10(root: Path | None, download: bool = False) -> ImageData:
    """50,000 + 10,000 images ``[n, 3, 32, 32]`` from ``root/cifar-10-batches-py``, normalised channel by channel."""
    train, test = _read("cifar10", "CIFAR10", "cifar-10-batches-py", root, download, _cifar_split)
    return from_pixels("cifar10", "CIFAR-10", 10, train, test, CIFAR10_MEAN, CIFAR10_STD)


def load_cifar100(root: Path | None, download: bool = False) -> ImageData:
    """50,000 + 10,000 images ``[n, 3, 32, 32]`` from ``root/cifar-100-python``, normalised channel by channel."""
    train, test = _read("cifar100", "CIFAR100", "cifar-100-python", root, download, _cifar_split)
    return from_pixels("cifar100", "CIFAR-100", 100, train, test, _CIFAR100_MEAN, _CIFAR100_STD)


def _cifar_split(dataset: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)


def _read(
    name: str,
    class_name: str,
    layout: str,
    root: Path | None,
    download: bool,
    split: Callable[[Any], tuple[Tensor, Tensor]],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if root is None:
        raise LLPFError(f"data {name!r} needs a folder: name the one that holds {layout}")
    folder = _torchvision_root(root, layout)
    if not download:
        if not root.is_dir():
            raise LLPFError(f"data folder {root} does not exist; name the folder that holds {layout}")
        if not (folder / layout).is_dir():
            raise LLPFError(f"data folder {root} holds no {layout}; name the folder that does, or ask for the download")
    kind = getattr(require("torchvision.datasets", f"data {name!r}"), class_name)
    try:
        train, test = (split(kind(root=str(folder), train=part, download=download)) for part in (True, False))
    # torchvision documents no exceptions for damaged files, full disks and missing networks.
    except Exception as error:
        raise LLPFError(f"data {name!r} cannot be read from {folder}: {first_line(error)}") from error
    return train, test


def _torchvision_root(root: Path, layout: str) -> Path:
    """``root``, or the folder above it where the user named the data set's own folder."""
    parts = Path(layout).parts
    for depth in range(len(parts), 0, -1):
        if root.parts[-depth:] == parts[:depth]:
            return root.parents[depth - 1]
    return root
