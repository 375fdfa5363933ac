"""CIFAR-10 as JPEG files inside one npz. JPEG loses detail, so the data are labelled "CIFAR-10 (JPEG)"."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from ..errors import LLPFError, require
from .dataset import ImageData, from_pixels
from .torchvision_sets import CIFAR10_MEAN, CIFAR10_STD

_FILE = "cifar10-jpeg.npz"
_PATHS = (_FILE, f"CIFAR10/{_FILE}")


def load_cifar10_jpeg(root: Path | None, download: bool = False) -> ImageData:
    """50,000 + 10,000 images ``[n, 3, 32, 32]`` from an npz, decoded by Pillow.

    The npz holds ``jpeg`` uint8 (all files one after another), ``offsets [n + 1]``, ``labels [n]``, ``is_test [n]`` and
    ``classes``.

    Args:
        root: the npz or a folder that holds it.
        download: not used; the file cannot be downloaded.

    Raises:
        LLPFError: the file is missing or damaged; Pillow is missing.
    """
    path = _npz_path(root)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            data, offsets, labels, is_test, classes = (
                arrays[key] for key in ("jpeg", "offsets", "labels", "is_test", "classes")
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LLPFError(f"{path} is no npz with the expected arrays: {error}") from error
    if len(offsets) != len(labels) + 1 or len(is_test) != len(labels):
        raise LLPFError(
            f"{path}: {len(labels)} labels, {len(is_test)} split marks and {len(offsets)} offsets do not fit"
        )
    pixels = torch.from_numpy(_decode(path, data, offsets)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels.astype(np.int64))
    test = torch.from_numpy(is_test.astype(bool))
    return from_pixels(
        "cifar10-jpeg",
        "CIFAR-10 (JPEG)",
        len(classes),
        (pixels[~test], targets[~test]),
        (pixels[test], targets[test]),
        CIFAR10_MEAN,
        CIFAR10_STD,
    )


def _npz_path(root: Path | None) -> Path:
    if root is None:
        raise LLPFError(f"data 'cifar10-jpeg' needs a folder: name the one that holds {_FILE}")
    if not root.exists():
        raise LLPFError(f"data folder {root} does not exist; name the folder that holds {_FILE}")
    if root.is_file():
        return root
    for path in _PATHS:
        if (root / path).is_file():
            return root / path
    raise LLPFError(f"data folder {root} holds no {_FILE}; name the folder that does")


def _decode(path: Path, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The images, uint8 ``[n, 32, 32, 3]``."""
    image_module = require("PIL.Image", "data 'cifar10-jpeg'")
    count = len(offsets) - 1
    pixels = np.empty((count, 32, 32, 3), dtype=np.uint8)
    stream = data.tobytes()
    for index in range(count):
        try:
            with image_module.open(io.BytesIO(stream[int(offsets[index]) : int(offsets[index + 1])])) as image:
                pixels[index] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise LLPFError(f"{path}: image {index} cannot be decoded as a 32x32 JPEG: {error}") from error
    return pixels
