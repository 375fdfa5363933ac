# mypy: allow-untyped-defs
"""Moments of a tile, and Chan's formula. All float64."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centre(x, first, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Mean of a tile and the deviations from it, zero beyond the end.

    Shifted by the first element, so that a constant tile has exactly zero deviation and a mean of a million
    deviations costs no digits.
    """
    x = x.to(tl.float64) - first
    if VECTOR > 1:
        mean = tl.sum(x, 0) / BLOCK
        deviation = x - mean
    else:
        valid = tl.arange(0, BLOCK) < left
        mean = tl.sum(tl.where(valid, x, 0.0), 0) / tl.minimum(left, BLOCK).to(tl.float64)
        deviation = tl.where(valid, x - mean, 0.0)
    return first + mean, deviation


@triton.jit
def tile_moments(x, y, first_x, first_y, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """The five moments of (x, y - x); ``y`` may be ``None``. Two passes over registers cost no traffic."""
    first_x = first_x.to(tl.float64)
    mean_x, dx = centre(x, first_x, left, VECTOR, BLOCK)
    m2_x = tl.sum(dx * dx, 0)
    if y is None:
        nothing = tl.full([], 0.0, tl.float64)
        return mean_x, nothing, m2_x, nothing, nothing
    else:
        delta = y.to(tl.float64) - x.to(tl.float64)
        mean_delta, ddelta = centre(delta, first_y.to(tl.float64) - first_x, left, VECTOR, BLOCK)
        return mean_x, mean_delta, m2_x, tl.sum(dx * ddelta, 0), tl.sum(ddelta * ddelta, 0)


@triton.jit
def chan(n, mean_p, mean_d, m2_p, c, m2_d, n_, mean_p_, mean_d_, m2_p_, c_, m2_d_):
    """Chan, Golub and LeVeque's update of (n, mean_p, mean_delta, M2_p, C, M2_delta) by a second such group.

    Both may be empty; an empty group has zero moments.
    """
    total = n + n_
    share = tl.where(total > 0, n_ / total, 0.0)
    weight = n * share
    gap_p = mean_p_ - mean_p
    gap_d = mean_d_ - mean_d
    return (
        total,
        mean_p + gap_p * share,
        mean_d + gap_d * share,
        m2_p + m2_p_ + gap_p * gap_p * weight,
        c + c_ + gap_p * gap_d * weight,
        m2_d + m2_d_ + gap_d * gap_d * weight,
    )
