"""``relu_pool_bounds``: the affine form of leaky ReLU after max pooling, in one pass, rounded outward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .library import check, check_like, define, refusal

SCHEMA = (
    "relu_pool_bounds(Tensor left, Tensor right, Tensor radius, float slope, int[2] kernel, int[2] stride, "
    "int[2] padding, int[2] dilation, bool ceil_mode) -> (Tensor, Tensor, Tensor)"
)
#: The smallest slope beside 0: products with a subnormal slope have no relative bound of their rounding.
LEAST_SLOPE = 2.0**-100

#: left, right, radius.
Form = tuple[Tensor, Tensor, Tensor]


def relu_pool_bounds(
    left: Tensor,
    right: Tensor,
    radius: Tensor,
    slope: float,
    kernel: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Form:
    """Affine form of leaky_relu(max_pool2d(v)), which is also that of max_pool2d(leaky_relu(v)).

    The values v(t), -1 <= t <= 1, satisfy |v(t) - ((1 - t) left + (1 + t) right) / 2| <= radius; so do those of the
    result (ours). Both functions are convex and increasing. With lower ends l = left - radius, r = right - radius and
    upper ends likewise, a window's maximum is

    - at most the chord of its largest upper ends;
    - at least the maximum of two of its lower chords, the largest at the left end and the largest at the right end. It
      lies below the chord of those two ends by x y / (x + y) at most, where x and y are the leads of each at its end.

    Leaky ReLU is applied to the ends of both bounds. Where the lower one goes from -a to b or back, it is lowered by
    (1 - slope) a b / (a + b). The radius contains the rounding of this computation, also where a processor flushes
    subnormal numbers to zero: 8 u of the result, 24 u of its radius and 64 times the smallest normal number at most.

    Args:
        left, right: float32 or float64, contiguous, of one shape. ``[N, C, H, W]``, or any shape where the kernel is
            ``(1, 1)`` with stride 1 and without padding: leaky ReLU alone.
        radius: >= 0, contiguous, of the same shape, or with first dimension 1: one for all samples.
        slope: 0, or 2^-100 to 1; 0 is ReLU, 1 max pooling alone.
        kernel, stride, padding, dilation, ceil_mode: as for :func:`torch.nn.functional.max_pool2d`.

    Returns:
        left, right, radius of the shape of max_pool2d's result. The radius is NaN or infinite where a value in the
        window is, or where the computation overflows. Every implementation gives the same bits.

    Raises:
        LLPFError: a shape, dtype, device, layout or option that differs from the above.
    """
    try:
        return torch.ops.llpf_fast.relu_pool_bounds.default(
            left, right, radius, slope, list(kernel), list(stride), list(padding), list(dilation), ceil_mode
        )
    except (RuntimeError, ValueError) as error:
        raise refusal("relu_pool_bounds", error) from None


def check_relu_pool_bounds(
    left: Tensor,
    right: Tensor,
    radius: Tensor,
    slope: float,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Shape of the result."""
    op = "relu_pool_bounds"
    check(
        left.dtype in (torch.float32, torch.float64),
        lambda: f"{op}: left must be float32 or float64, got {left.dtype}",
    )
    check(
        left.is_contiguous(),
        lambda: f"{op}: left must be contiguous, got strides {list(left.stride())} for {list(left.shape)}",
    )
    check_like(op, left, "right", right)
    shared = radius.dim() > 0 and radius.shape[0] == 1
    check_like(op, left[:1] if shared and left.dim() > 0 else left, "radius", radius)
    check(
        slope == 0 or LEAST_SLOPE <= slope <= 1,
        lambda: f"{op}: slope must be 0, or 2^-100 to 1, got {slope:g}",
    )
    for name, pair, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        check(
            len(pair) == 2 and min(pair) >= least,
            lambda name=name, pair=pair, least=least: (  # type: ignore[misc]
                f"{op}: {name} must be two integers of at least {least}, got {list(pair)}"
            ),
        )
    if is_pointwise(kernel, stride, padding):
        return list(left.shape)
    check(
        left.dim() == 4, lambda: f"{op}: left must be [N, C, H, W] for a kernel {list(kernel)}, got {list(left.shape)}"
    )
    shape = list(left.shape)
    for i in (0, 1):
        span = dilation[i] * (kernel[i] - 1) + 1
        check(
            2 * padding[i] <= span,
            lambda i=i: f"{op}: padding must be at most half of the kernel, got {list(padding)} for {list(kernel)}",  # type: ignore[misc]
        )
        size = shape[2 + i] + 2 * padding[i] - span
        out = (size + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        # The last window must begin inside the image or its left padding.
        if ceil_mode and (out - 1) * stride[i] >= shape[2 + i] + padding[i]:
            out -= 1
        check(
            out >= 1,
            lambda: (
                f"{op}: the kernel {list(kernel)} does not fit into {list(left.shape)} with padding {list(padding)}"
            ),
        )
        shape[2 + i] = out
    return shape


def is_pointwise(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a window is one value and gives one: tensors of any shape."""
    return all(value == 1 for value in (*kernel, *stride)) and not any(padding)


def _inside(size: int, out: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Outputs whose window has a cell at ``offset`` from its first inside the image, and the inputs there."""
    first = max(0, -(offset // stride))
    last = min(out - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)


def _cells(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Outputs and inputs of each cell of the window, in the order of rows."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = _inside(size[0], out[0], i * dilation[0] - padding[0], stride[0])
            columns = _inside(size[1], out[1], j * dilation[1] - padding[1], stride[1])
            yield (rows[0], columns[0]), (rows[1], columns[1])


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > b, a, b)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a < b, a, b)


def crossing_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far the maximum of two lines lies below the chord of its ends, at most: x y / (x + y), within 3 u of itself.

    One line leads by ``x`` at the left end, the other by ``y`` at the right end; 0 where one of them does not lead, and
    infinite where x + y is. The quotient lies between 1/2 and 1: it neither overflows nor vanishes.
    """
    least, most = _smaller(x, y), _larger(x, y)
    both = least + most
    gap = torch.where(both <= torch.finfo(x.dtype).max, least * (most / both), math.inf)
    return torch.where(least > 0, gap, 0.0)


@torch.no_grad()
def relu_pool_bounds_eager(
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
    shape = check_relu_pool_bounds(left, right, radius, slope, kernel, stride, padding, dilation, ceil_mode)
    u, tiny = torch.finfo(left.dtype).eps / 2, torch.finfo(left.dtype).tiny
    low, high = (left - radius, right - radius), (left + radius, right + radius)
    if is_pointwise(kernel, stride, padding):
        most_left = left_of_right = low[0]
        most_right = right_of_left = low[1]
        high_left, high_right, total = *high, high[0] + high[1]
    else:
        least = left.new_full(shape, -math.inf)
        most_left, left_of_right, most_right, right_of_left = (least.clone() for _ in range(4))
        high_left, high_right, total = least.clone(), least.clone(), left.new_zeros(shape)
        for (rows, columns), (ys, xs) in _cells(left.shape[2:], shape[2:], kernel, stride, padding, dilation):
            out, cell = (..., rows, columns), (..., ys, xs)
            low_left, low_right = low[0][cell], low[1][cell]
            leads = low_left > most_left[out]
            most_left[out] = torch.where(leads, low_left, most_left[out])
            right_of_left[out] = torch.where(leads, low_right, right_of_left[out])
            leads = low_right > most_right[out]
            most_right[out] = torch.where(leads, low_right, most_right[out])
            left_of_right[out] = torch.where(leads, low_left, left_of_right[out])
            high_left[out] = _larger(high[0][cell], high_left[out])
            high_right[out] = _larger(high[1][cell], high_right[out])
            total[out] += high[0][cell] + high[1][cell]
    x, y = most_left - left_of_right, most_right - right_of_left
    gap = crossing_gap(x, y)
    # The errors of the four ends: 2 u of the winners in the leads and 1 u of each winner itself.
    size = _larger(most_left.abs(), most_right.abs())
    gap = torch.where(gap > 0, gap * (1 + 8 * u) + size * (4 * u), 0.0)
    low_left, low_right = most_left - gap, most_right - gap

    def value_at(end: Tensor) -> Tensor:
        return torch.where(end > 0, end, end * slope)

    if slope == 1:
        bend = torch.zeros_like(low_left)
    else:
        bend = crossing_gap(-_smaller(low_left, low_right), _larger(low_left, low_right)) * (0.5 * (1.0 - slope))
        low_left, low_right = value_at(low_left), value_at(low_right)
        high_left, high_right = value_at(high_left), value_at(high_right)
    half_left, half_right = (high_left - low_left) * 0.5, (high_right - low_right) * 0.5
    new_left, new_right = (low_left + half_left) - bend, (low_right + half_right) - bend
    size = _larger(_larger(high_left, high_right), -_smaller(low_left, low_right))
    spread = (_larger(half_left, half_right) + bend) * (1 + 24 * u) + (size * (8 * u) + 64 * tiny)
    # A sum of all values of the window times 0 is NaN where one is not finite, also where it decided nothing.
    spread = spread + (new_left + new_right + total) * 0.0
    return new_left, new_right, spread


def relu_pool_bounds_fake(
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
    shape = check_relu_pool_bounds(left, right, radius, slope, kernel, stride, padding, dilation, ceil_mode)
    return left.new_empty(shape), left.new_empty(shape), left.new_empty(shape)


define(SCHEMA, relu_pool_bounds_eager, relu_pool_bounds_fake)
