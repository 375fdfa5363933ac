"""The handwritten digits inside scikit-learn: 1,797 real 8x8 images, no download."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import require
from .dataset import ImageData, from_pixels

#: The highest pixel.
_SCALE = 16.0


def load_digits(root: Path | None = None, download: bool = False) -> ImageData:
    """1,437 training and 360 test images ``[n, 1, 8, 8]``; the split is fixed and stratified by class.

    ``root`` and ``download`` are not used: every reader takes them.

    Raises:
        MissingPackageError: scikit-learn is missing.
    """
    user = "data 'digits'"
    digits = require("sklearn.datasets", user).load_digits()
    pixels, test_pixels, targets, test_targets = require("sklearn.model_selection", user).train_test_split(
        digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    mean = float(pixels.mean()) / _SCALE
    std = float(pixels.std()) / _SCALE
    return from_pixels(
        "digits",
        "digits (scikit-learn)",
        10,
        (torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(targets)),
        (torch.from_numpy(test_pixels).unsqueeze(1), torch.from_numpy(test_targets)),
        (mean,),
        (std,),
        scale=_SCALE,
    )
