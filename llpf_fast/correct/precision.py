"""In which arithmetic a network's passes run: settings of the process, set for a while and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from ..errors import LLPFError

Precision = Literal["float32", "tf32", "bfloat16"]


def check_precision(precision: Precision, device: torch.device) -> None:
    """LLPFError where the device has no such arithmetic."""
    if precision == "tf32" and device.type != "cuda":
        raise LLPFError(f"correction.precision tf32 belongs to NVIDIA GPUs, not to {device.type}: use float32")


@contextlib.contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions of float32 on a GPU are true float32 inside, or TF32 (10 bits of mantissa).

    Torch's own default is mixed: convolutions in TF32, matrix products not. On a CPU this does nothing.
    """
    if device.type != "cuda":
        yield
        return
    places = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv"))  # noqa: B009  (unknown to its stubs)
    before = [place.fp32_precision for place in places]
    wanted = "tf32" if precision == "tf32" else "ieee"
    try:
        for place in places:
            place.fp32_precision = wanted
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old
