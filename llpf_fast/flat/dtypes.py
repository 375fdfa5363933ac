"""What a change of dtype does to values."""

from __future__ import annotations

import torch
from torch import Tensor


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in ``dtype``, on its device; of complex values the real part, without torch's warning."""
    return (value.real if value.is_complex() and not dtype.is_complex else value).to(dtype)


def exact(value: Tensor, converted: Tensor) -> bool:
    """Whether ``converted`` holds the very values of ``value`` (of any dtype): converted back, each is what it was."""
    if value.dtype == converted.dtype:
        return True
    if value.is_complex() and not converted.is_complex():
        return False
    a, b = value.to(converted.device), converted.to(value.dtype)
    if a.is_floating_point() and a.element_size() == 1:  # 8-bit floats have no comparison
        a, b = a.to(torch.float32), b.to(torch.float32)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def is_rounding(value: Tensor, converted: Tensor) -> bool:
    """Whether the dtypes, floating or complex both, differ in precision alone."""
    numbers = all(t.is_floating_point() or t.is_complex() for t in (value, converted))
    return numbers and value.is_complex() <= converted.is_complex()


def dtype_name(tensor: Tensor) -> str:
    """``float32`` for ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")
