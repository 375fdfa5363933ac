"""Bit patterns, units in the last place, and the error bound of every implementation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import oracle
from .oracle import Array, Real

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Quiet NaNs that no arithmetic produces, so that a value which was read and written again shows.
_PAYLOAD = {2: 0x7FD5, 4: 0x7FD51234, 8: 0x7FFD123456789ABC}


def exact(value: Tensor) -> Array:
    """The same numbers in the oracle's precision."""
    return value.detach().double().numpy().astype(Real)


def bits(value: Tensor) -> Tensor:
    """The value's bit pattern: equal bits means equal NaN payloads and signs of zero too."""
    return value.detach().contiguous().view(_INTEGERS[value.element_size()])


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(bits(left), bits(right))


def poison(value: Tensor, where: Tensor) -> None:
    """Overwrite ``value[..., where]`` with the payload NaN."""
    bits(value)[..., where] = _PAYLOAD[value.element_size()]


def unit(size: Array, dtype: torch.dtype) -> Array:
    """One unit in the last place of ``dtype`` at magnitude ``size``."""
    info = torch.finfo(dtype)
    return oracle.spacing(size, 1 - round(np.log2(info.eps)), info.smallest_normal * info.eps)


def worst_error(got: Tensor, want: Array, size: Array, dtype: torch.dtype) -> float:
    """The largest error in units in the last place of ``dtype`` at ``size``; infinite where a NaN or inf came out."""
    if want.size == 0:
        return 0.0
    error = abs(exact(got) - want) / unit(size, dtype)
    return float("inf") if np.isnan(error).any() else float(error.max())


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The elementwise arithmetic beside ``dtype`` storage: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def map_bound(size: Array, reach: Array, condition: float) -> Array:
    """What float64 moments and coefficients make of a p + b d + c: 64 roundings, magnified by ``condition``."""
    return 64 * Real(2) ** -53 * condition * (size + reach)


def eager_bound(size: Array, dtype: torch.dtype) -> Array:
    """What the elementwise arithmetic and the storing may be wrong by.

    Each coefficient, each product and each sum rounds; at most 5 roundings meet in one term.
    """
    arithmetic = 5 * Real(torch.finfo(compute_type(dtype)).eps / 2) * size
    narrow = dtype in (torch.bfloat16, torch.float16)
    return arithmetic + (Real(0.5) * unit(size, dtype) if narrow else 0)


def assert_within(got: Tensor, want: Array, bound: Array) -> None:
    """Elementwise |got - want| <= bound; a NaN is never within."""
    error = abs(exact(got) - want)
    inside = error <= bound
    if not inside.all():
        at = int(np.argmax(np.where(np.isnan(error), np.inf, error / np.maximum(bound, 1e-300))))
        raise AssertionError(
            f"{int((~inside).sum())} of {error.size} values beyond their bound; worst at {at}: "
            f"got {float(got.double()[at])!r}, want {float(want[at])!r}, bound {float(bound[at]):.3g}"
        )
