# mypy: allow-untyped-defs
"""Sums over neighbouring segments, a tile of segments at a time: what ``coefficients`` is built from.

Lane i of a tile is segment i. It reads the members of its group, WIDTH at a time and always from the first
member on, so that all members of a group get the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import MASKED


@triton.jit
def first_head(segments, low, count, LANES: tl.constexpr):
    """First segment in [low, low + LANES) at which a distance group and a variance group begin together.

    ``low + LANES`` where there is none, at most ``count``. No group reaches across a head.
    """
    lane = low + tl.arange(0, LANES)
    inside = lane < count
    after = inside & (lane > 0)
    row = segments + 5 * lane
    same_distance = tl.load(row + 2, mask=inside, other=0) == tl.load(row - 3, mask=after, other=0)
    same_variance = tl.load(row + 3, mask=inside, other=0) == tl.load(row - 2, mask=after, other=0)
    head = inside & ~(after & (same_distance | same_variance))
    return tl.minimum(tl.min(tl.where(head, lane, low + LANES), 0), count)


@triton.jit
def group_of(labels, lane, inside, count, WIDTH: tl.constexpr):
    """First member and size of each lane's group; ``labels`` points at the label of segment 0.

    Groups are contiguous and their labels unique, so the equal labels among the next WIDTH neighbours are the next
    members. A group of at most WIDTH on either side, nearly every one, takes one step.
    """
    reach = tl.arange(0, WIDTH)[None, :]
    mine = tl.load(labels + 5 * lane, mask=inside, other=0)[:, None]
    first, last = lane, lane
    more = tl.full([], 1, tl.int64)
    while more > 0:
        left, right = first[:, None] - 1 - reach, last[:, None] + 1 + reach
        on_left, on_right = inside[:, None] & (left >= 0), inside[:, None] & (right < count)
        on_left = on_left & (tl.load(labels + 5 * left, mask=on_left, other=0) == mine)
        on_right = on_right & (tl.load(labels + 5 * right, mask=on_right, other=0) == mine)
        to_left, to_right = tl.sum(on_left.to(tl.int64), 1), tl.sum(on_right.to(tl.int64), 1)
        first -= to_left
        last += to_right
        more = (tl.max(tl.maximum(to_left, to_right), 0) == WIDTH).to(tl.int64)
    return first, tl.where(inside, last - first + 1, 0)


@triton.jit
def group_total(column, stride, first, size, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Sum of a column over each lane's group."""
    total = tl.zeros([LANES], tl.float64)
    done, most = tl.full([], 0, tl.int64), tl.max(size, 0)
    while done < most:
        reach = done + tl.arange(0, WIDTH)[None, :]
        values = tl.load(column + stride * (first[:, None] + reach), mask=reach < size[:, None], other=0.0)
        total += tl.sum(values, 1)
        done += WIDTH
    return total


@triton.jit
def pool(
    mean,
    m2,
    segments,
    first,
    size,
    n_group,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Mean and second moment of each lane's group; ``mean`` and ``m2`` point at columns of rows of five.

    Shifted by the first member, so that large means do not cancel. MASKED members count nothing.
    """
    shift = tl.load(mean + 5 * first, mask=size > 0, other=0.0)
    group_mean = tl.zeros([LANES], tl.float64)
    most = tl.max(size, 0)
    done = tl.full([], 0, tl.int64)
    while done < most:
        member, n, there = group_members(segments, first, size, done, WIDTH)
        share = tl.where(n > 0, n / n_group[:, None], 0.0)
        gap = tl.load(mean + 5 * member, mask=there, other=0.0) - shift[:, None]
        group_mean += tl.sum(tl.where(n > 0, share * gap, 0.0), 1)
        done += WIDTH
    group_mean += shift
    group_m2 = tl.zeros([LANES], tl.float64)
    done = tl.full([], 0, tl.int64)
    while done < most:
        member, n, there = group_members(segments, first, size, done, WIDTH)
        off = tl.load(mean + 5 * member, mask=there, other=0.0) - group_mean[:, None]
        inner = tl.load(m2 + 5 * member, mask=there, other=0.0)
        group_m2 += tl.sum(tl.where(n > 0, inner + n * off * off, 0.0), 1)
        done += WIDTH
    return group_mean, group_m2


@triton.jit
def group_spread(column, segments, first, size, centre, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Sum of n (value - centre)^2 of a column of rows of five over each lane's group, without the MASKED members."""
    total = tl.zeros([LANES], tl.float64)
    done, most = tl.full([], 0, tl.int64), tl.max(size, 0)
    while done < most:
        member, n, there = group_members(segments, first, size, done, WIDTH)
        off = tl.load(column + 5 * member, mask=there, other=0.0) - centre[:, None]
        total += tl.sum(tl.where(n > 0, n * off * off, 0.0), 1)
        done += WIDTH
    return total


@triton.jit
def group_count(segments, first, size, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Elements of each lane's group without the MASKED members."""
    total = tl.zeros([LANES], tl.float64)
    done, most = tl.full([], 0, tl.int64), tl.max(size, 0)
    while done < most:
        _member, n, _there = group_members(segments, first, size, done, WIDTH)
        total += tl.sum(n, 1)
        done += WIDTH
    return total


@triton.jit
def group_members(segments, first, size, done, WIDTH: tl.constexpr):
    """The next WIDTH members of each lane's group, their lengths (0 where MASKED), and which of them count."""
    reach = done + tl.arange(0, WIDTH)[None, :]
    inside = reach < size[:, None]
    member = first[:, None] + reach
    flags = tl.load(segments + 5 * member + 4, mask=inside, other=0)
    there = inside & (flags & MASKED == 0)
    return member, tl.load(segments + 5 * member + 1, mask=there, other=0).to(tl.float64), there
