# mypy: allow-untyped-defs
"""``relu_pool_bounds`` in Triton: one program 128 outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.relu_pool_bounds import Form, check_relu_pool_bounds, is_pointwise

from .launch import launch

LANES = 128


def relu_pool_bounds_triton(
    left: Tensor,
    right: Tensor,
    radius: Tensor,
    slope: float,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Form:
    """The op :func:`llpf_fast.ops.relu_pool_bounds`, same arguments and errors."""
    shape = check_relu_pool_bounds(left, right, radius, slope, kernel, stride, padding, dilation, ceil_mode)
    out = left.new_empty(shape), left.new_empty(shape), left.new_empty(shape)
    pooled = not is_pointwise(kernel, stride, padding)
    sizes = (*left.shape[2:], *shape[2:]) if pooled else (1, 1, 1, 1)
    info = torch.finfo(left.dtype)
    launch(
        relu_pool_bounds_kernel,
        (triton.cdiv(out[0].numel(), LANES), 1),
        left,
        left,
        right,
        radius,
        *out,
        out[0].numel(),
        max(radius.numel(), 1),
        *sizes,
        *kernel,
        *stride,
        *padding,
        *dilation,
        slope,
        0.5 * (1.0 - slope),
        POOLED=pooled,
        TYPE=tl.float64 if left.dtype == torch.float64 else tl.float32,
        UNIT=info.eps / 2,
        TINY=info.tiny,
        MOST=info.max,
        LANES=LANES,
        warps=4,
    )
    return out


@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def smaller(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def crossing_gap(x, y, MOST: tl.constexpr):
    least = smaller(x, y)
    most = larger(x, y)
    both = least + most
    # Of float64 the operator rounds to nearest; of float32 it approximates.
    quotient = tl.div_rn(most, both) if both.dtype == tl.float32 else most / both
    gap = tl.where(both <= MOST, least * quotient, float("inf"))
    return tl.where(least > 0, gap, 0.0)


@triton.jit
def value_at(end, slope):
    return tl.where(end > 0, end, end * slope)


@triton.jit(do_not_specialize=["count", "radii", "slope", "half_bend"])
def relu_pool_bounds_kernel(
    left,
    right,
    radius,
    out_left,
    out_right,
    out_radius,
    count: tl.int64,
    radii: tl.int64,
    height,
    width,
    out_height,
    out_width,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_height,
    padding_width,
    dilation_height,
    dilation_width,
    slope: tl.float64,
    half_bend: tl.float64,
    POOLED: tl.constexpr,
    TYPE: tl.constexpr,
    UNIT: tl.constexpr,
    TINY: tl.constexpr,
    MOST: tl.constexpr,
    LANES: tl.constexpr,
):
    """The order of the operations is that of csrc/core/relu_pool_bounds.h."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    exists = lane < count
    slope = tl.full([], slope, TYPE)
    half_bend = tl.full([], half_bend, TYPE)
    if POOLED:
        x = lane % out_width
        y = lane // out_width % out_height
        plane = lane // (out_width * out_height) * (height * width)
        least = tl.full([LANES], float("-inf"), TYPE)
        most_left, right_of_left, most_right, left_of_right = least, least, least, least
        high_left, high_right = least, least
        total = tl.full([LANES], 0.0, TYPE)
        for i in range(kernel_height):
            row = y * stride_height - padding_height + i * dilation_height
            for j in range(kernel_width):
                column = x * stride_width - padding_width + j * dilation_width
                inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                at = plane + row * width + column
                l_value = tl.load(left + at, mask=inside, other=0.0)
                r_value = tl.load(right + at, mask=inside, other=0.0)
                e_value = tl.load(radius + at % radii, mask=inside, other=0.0)
                l_low, r_low = l_value - e_value, r_value - e_value
                l_high, r_high = l_value + e_value, r_value + e_value
                wins = inside & (l_low > most_left)
                most_left = tl.where(wins, l_low, most_left)
                right_of_left = tl.where(wins, r_low, right_of_left)
                wins = inside & (r_low > most_right)
                most_right = tl.where(wins, r_low, most_right)
                left_of_right = tl.where(wins, l_low, left_of_right)
                high_left = tl.where(inside, larger(l_high, high_left), high_left)
                high_right = tl.where(inside, larger(r_high, high_right), high_right)
                total += tl.where(inside, l_high + r_high, 0.0)
        gap = crossing_gap(most_left - left_of_right, most_right - right_of_left, MOST)
        size = larger(tl.abs(most_left), tl.abs(most_right))
        gap = tl.where(gap > 0, gap * (1 + 8 * UNIT) + size * (4 * UNIT), 0.0)
        low_left, low_right = most_left - gap, most_right - gap
    else:
        l_value = tl.load(left + lane, mask=exists, other=0.0)
        r_value = tl.load(right + lane, mask=exists, other=0.0)
        e_value = tl.load(radius + lane % radii, mask=exists, other=0.0)
        low_left, low_right = l_value - e_value, r_value - e_value
        high_left, high_right = l_value + e_value, r_value + e_value
        total = high_left + high_right
    bend = crossing_gap(-smaller(low_left, low_right), larger(low_left, low_right), MOST)
    bend = tl.where(half_bend != 0, bend * half_bend, 0.0)
    low_left, low_right = value_at(low_left, slope), value_at(low_right, slope)
    high_left, high_right = value_at(high_left, slope), value_at(high_right, slope)
    half_left, half_right = (high_left - low_left) * 0.5, (high_right - low_right) * 0.5
    new_left, new_right = (low_left + half_left) - bend, (low_right + half_right) - bend
    size = larger(larger(high_left, high_right), -smaller(low_left, low_right))
    spread = (larger(half_left, half_right) + bend) * (1 + 24 * UNIT) + (size * (8 * UNIT) + 64 * TINY)
    spread += (new_left + new_right + total) * 0.0
    tl.store(out_left + lane, new_left, mask=exists)
    tl.store(out_right + lane, new_right, mask=exists)
    tl.store(out_radius + lane, spread, mask=exists)
