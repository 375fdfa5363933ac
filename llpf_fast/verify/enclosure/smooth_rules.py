"""Rules of enclosure of smooth functions of one variable, by bounds of their first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .form import AffineForm, unit_roundoff

#: (low, high) -> the least and the largest value on [low, high]; infinite or NaN where nothing is known.
Range = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: torch's exp, log, tanh, erf and their like round by at most 4 units in the last place: glibc's errors are at most 1
#: (its manual, "Known Maximum Errors in Math Functions"), SLEEF's ``u10`` variants, which torch vectorizes with, 1.0,
#: CUDA's at most 4 where torch uses them (CUDA C++ Programming Guide, "Mathematical Functions"). A unit in the last
#: place is at most 2 u of the value.
FUNCTION_ROUNDING = 8.0


def smooth(x: AffineForm, function: Callable[[Tensor], Tensor], slopes: Range, curvatures: Range) -> AffineForm:
    """The form of ``function``, f, from the ranges of f' and f''; f is computed within 8 u of itself.

    With X the chord of x, of width w, and s in [s1, s2] the values of f'' on it, f(X(t)) minus the chord of f lies
    between -max(s2, 0) w^2 / 8 and max(-s1, 0) w^2 / 8: f - s1 x^2 / 2 is convex and f - s2 x^2 / 2 concave. It is also
    at most (b - a) w / 4 away, for f' in [a, b]: with the chord's slope c it is at most (b - c)(c - a) w / (b - a). And
    f(x) - f(X) is at most the radius of x times the largest |f'|.

    Args:
        slopes, curvatures: ranges on [low, high]; they may be too narrow by 1000 u of themselves.
    """
    x = x.settled()
    u, tiny = unit_roundoff(x.dtype), torch.finfo(x.dtype).tiny
    outward = 1 + 2000 * u
    left = right = function(x.left)
    if x.still and x.radius is None:
        return AffineForm(left, left, None, FUNCTION_ROUNDING)
    low, high = (x.left, x.left) if x.still else (torch.minimum(x.left, x.right), torch.maximum(x.left, x.right))
    reach = 0.0 if x.radius is None else x.full_radius()
    least, most = slopes(low - reach, high + reach)
    radius = torch.maximum(least.abs(), most.abs()).mul_(reach)
    if not x.still:
        right = function(x.right)
        width = high - low
        cap = (most - least).mul_(width).mul_(0.25)
        bottom, top = curvatures(low, high)
        squared = width * width * 0.125
        below = torch.minimum(top.clamp_min(0) * squared, cap)
        above = torch.minimum((-bottom).clamp_min(0) * squared, cap)
        shift = (above - below).mul_(0.5)
        left, right = left + shift, right + shift
        # The shift's rounding is below 8 u of it and of the values.
        radius = radius.add_((above + below).mul_(0.5 + 8 * u))
    radius = radius.mul_(outward).add_(8 * tiny)
    return AffineForm(left, right, radius, FUNCTION_ROUNDING + 4.0)


def _reciprocal_root_slopes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    first, last = positive(low).pow(-1.5).mul_(-0.5), positive(high).pow(-1.5).mul_(-0.5)
    return first, last


def _reciprocal_root_curvatures(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return positive(high).pow(-2.5).mul_(0.75), positive(low).pow(-2.5).mul_(0.75)


def positive(x: Tensor) -> Tensor:
    """``x``, with NaN where it is not above 0, so that what is computed from it bounds nothing."""
    return x.masked_fill(x <= 0, torch.nan)


def reciprocal_root(x: AffineForm) -> AffineForm:
    """The form of x^(-1/2)."""
    return smooth(x, torch.rsqrt, _reciprocal_root_slopes, _reciprocal_root_curvatures)
