# mypy: allow-untyped-defs
"""``coefficients`` in Triton: from moments to one affine map a segment, float64 throughout."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.coefficients import DEGENERATE, OF_MEAN, SMALLEST_SQUARE, check_coefficients, inspect_coefficients
from llpf_fast.ops.library import COEFFICIENT_COLUMNS

from .constants import (
    COMPENSATE,
    FREE,
    HOLD,
    INFINITY,
    MASKED,
    MEAN,
    NORM_SPHERE,
    POINT,
    TWICE,
    VARIANCE_SPHERE,
)
from .groups import first_head, group_count, group_members, group_of, group_spread, group_total, pool
from .launch import launch, row_columns, row_stride

#: Segments a program treats at once, and members of a group a step. 64 x 8 float64 over 128 threads is 8 registers a
#: value; one program covers LeNet5 and ResNet18, and thousands of small groups spread over many programs.
_LANES, _WIDTH = 64, 8
_DEGENERATE = tl.constexpr(DEGENERATE)
_OF_MEAN = tl.constexpr(OF_MEAN)
_SMALLEST_SQUARE = tl.constexpr(SMALLEST_SQUARE)


def coefficients_triton(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> Tensor:
    """The op :func:`llpf_fast.ops.coefficients`, same arguments and errors."""
    check_coefficients(moments, segments, target_variance, step, active, radius, destination, epsilon)
    inspect_coefficients(moments, segments, target_variance, step, active, radius, destination)
    shape = (*moments.shape[:-1], COEFFICIENT_COLUMNS)
    # Result and workspace in one allocation.
    both = moments.new_empty((2, *shape))
    launch_coefficients(
        moments, segments, target_variance, step, active, radius, both[1], both[0],
        destination=destination, epsilon=epsilon, combine_sum=combine_sum, clamp=clamp, project_first=project_first,
    )  # fmt: skip
    return both[0]


def launch_coefficients(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    work: Tensor,
    out: Tensor,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> None:
    """Maps of K paths into ``out``; ``work`` and ``out`` hold K S 5 float64 elements each, apart from ``moments``."""
    count = segments.shape[0]
    paths = out.numel() // (COEFFICIENT_COLUMNS * count) if count else 0
    launch(
        coefficient_kernel,
        (-(-count // _LANES), paths),
        moments,
        moments,
        segments,
        target_variance,
        step,
        active,
        radius,
        work,
        out,
        count,
        row_stride(target_variance, count),
        row_stride(step, 2),
        epsilon,
        ACTIVE=row_columns(active, paths),
        DESTINATION=int(destination),
        SUM=combine_sum,
        CLAMP=clamp,
        PROJECT=project_first,
        LANES=_LANES,
        WIDTH=_WIDTH,
        warps=4,
    )


@triton.jit
def to_target(target, epsilon, n, m2, reference, fixed):
    """The scale that brings a second moment onto the target's sphere; 1 where there is no direction to scale."""
    variance = m2 / tl.where(n > 2, n - 1, 1.0)
    s = tl.sqrt((target + epsilon) / (variance + epsilon))
    return tl.where(fixed | (m2 <= _SMALLEST_SQUARE) | (m2 <= _DEGENERATE * reference), 1.0, s)


@triton.jit
def pooled_square(
    moments,
    segments,
    target_variance,
    epsilon,
    first,
    size,
    n_group,
    group_mean,
    group_m2,
    PROJECT: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Squared L2 norm of each lane's variance group after its projection; each member has its FREE flag."""
    squared = tl.zeros([LANES], tl.float64)
    done, most = tl.full([], 0, tl.int64), tl.max(size, 0)
    while done < most:
        member, n, there = group_members(segments, first, size, done, WIDTH)
        mean = tl.load(moments + 5 * member, mask=there, other=0.0)
        m2 = tl.load(moments + 5 * member + 2, mask=there, other=0.0)
        if PROJECT:
            flags = tl.load(segments + 5 * member + 4, mask=there, other=0)
            target = tl.load(target_variance + member, mask=there, other=0.0)
            fixed = (flags & FREE != 0) | (n_group <= 1)[:, None]
            s0 = to_target(target, epsilon, n_group[:, None], group_m2[:, None], 0.0, fixed)
            mean = s0 * mean + (1.0 - s0) * group_mean[:, None]
            m2 = s0 * s0 * m2
        squared += tl.sum(tl.where(there, m2 + n * mean * mean, 0.0), 1)
        done += WIDTH
    return squared


@triton.jit
def project(
    moments,
    segments,
    target_variance,
    radius,
    epsilon,
    work,
    out,
    low,
    end,
    count,
    DESTINATION: tl.constexpr,
    PROJECT: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Phase 1: the moments of P, the values on their spheres, and of the way from P to the destination."""
    ABOUT_MEAN: tl.constexpr = (DESTINATION == MEAN) | (DESTINATION == VARIANCE_SPHERE)
    lane = low + tl.arange(0, LANES)
    inside = lane < end
    flags = tl.load(segments + 5 * lane + 4, mask=inside, other=0)
    there = inside & (flags & MASKED == 0)
    n = tl.load(segments + 5 * lane + 1, mask=there, other=0).to(tl.float64)
    first, size = group_of(segments + 3, lane, inside, count, WIDTH)
    n_group = group_count(segments, first, size, LANES, WIDTH)
    group_mean, group_m2 = pool(moments, moments + 2, segments, first, size, n_group, LANES, WIDTH)
    mean_q = tl.load(moments + 5 * lane, mask=there, other=0.0)
    m2_q = tl.load(moments + 5 * lane + 2, mask=there, other=0.0)

    s0 = tl.full([LANES], 1.0, tl.float64)
    if PROJECT:
        target = tl.load(target_variance + lane, mask=there, other=0.0)
        fixed = (flags & FREE != 0) | ~there | (n_group <= 1)
        s0 = to_target(target, epsilon, n_group, group_m2, 0.0, fixed)
    back = 1.0 - s0
    mean_p = s0 * mean_q + back * group_mean
    m2_p = s0 * s0 * m2_q

    alpha = tl.zeros([LANES], tl.float64)
    if DESTINATION == POINT:
        c = tl.load(moments + 5 * lane + 3, mask=there, other=0.0)
        mean_delta = tl.load(moments + 5 * lane + 1, mask=there, other=0.0) + back * (mean_q - group_mean)
        m2_delta = tl.load(moments + 5 * lane + 4, mask=there, other=0.0) + 2 * back * c + back * back * m2_q
        # A comparison lets NaN through where a maximum would hide it.
        m2_delta = tl.where(m2_delta < 0, 0.0, m2_delta)
        c = s0 * (c + back * m2_q)
    else:
        if DESTINATION == INFINITY:
            alpha += 2.0
        if DESTINATION == VARIANCE_SPHERE:
            m2 = s0 * s0 * group_m2
            variance = m2 / tl.where(n_group > 2, n_group - 1, 1.0)
            goal = tl.load(radius + lane, mask=there, other=0.0)
            alpha = tl.where((m2 > _SMALLEST_SQUARE) & (n_group > 1), tl.sqrt(goal / variance), 1.0)
        if DESTINATION == NORM_SPHERE:
            square = pooled_square(
                moments, segments, target_variance, epsilon, first, size, n_group, group_mean, group_m2,
                PROJECT, LANES, WIDTH,
            )  # fmt: skip
            goal = tl.load(radius + lane, mask=there, other=0.0)
            alpha = tl.where(square > _SMALLEST_SQUARE, goal / tl.sqrt(square), 1.0)
        mean_delta = (alpha - 1.0) * mean_p
        if ABOUT_MEAN:
            mean_delta += (1.0 - alpha) * group_mean
        c = (alpha - 1.0) * m2_p
        m2_delta = (alpha - 1.0) * (alpha - 1.0) * m2_p
    moving = there & (flags & HOLD == 0)

    mine, result = work + 5 * lane, out + 5 * lane
    tl.store(mine, mean_p, mask=inside)
    tl.store(mine + 1, m2_p, mask=inside)
    tl.store(mine + 2, mean_delta, mask=inside)
    tl.store(mine + 3, c, mask=inside)
    tl.store(mine + 4, m2_delta, mask=inside)
    tl.store(result, tl.where(moving, m2_delta + n * mean_delta * mean_delta, 0.0), mask=inside)
    tl.store(result + 1, alpha, mask=inside)
    tl.store(result + 2, tl.where(there, group_mean, 0.0), mask=inside)
    tl.store(result + 3, tl.where(there, s0, 1.0), mask=inside)
    tl.store(result + 4, tl.where(there, back * group_mean, 0.0), mask=inside)


@triton.jit
def move(
    segments,
    step,
    work,
    out,
    low,
    end,
    count,
    SUM: tl.constexpr,
    CLAMP: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Phase 2: the fraction t of each distance group, and the moments of m, the moved values."""
    lane = low + tl.arange(0, LANES)
    inside = lane < end
    flags = tl.load(segments + 5 * lane + 4, mask=inside, other=0)
    first, size = group_of(segments + 2, lane, inside, count, WIDTH)
    squared = group_total(out, 5, first, size, LANES, WIDTH)
    distance = tl.sqrt(squared)
    fixed, share = tl.load(step), tl.load(step + 1) * distance
    length = fixed + share if SUM else tl.maximum(fixed, share, propagate_nan=tl.PropagateNan.ALL)
    t = tl.where(squared > _SMALLEST_SQUARE, length / distance, 0.0)
    if CLAMP:
        t = tl.where(t > 1.0, 1.0, t)
    t = tl.where(flags & (MASKED | HOLD) == 0, t, 0.0)
    t = tl.where(flags & COMPENSATE != 0, tl.where(flags & TWICE != 0, -2.0, -1.0) * t, t)

    mine = work + 5 * lane
    mean_p, m2_p = tl.load(mine, mask=inside, other=0.0), tl.load(mine + 1, mask=inside, other=0.0)
    mean_delta, c = tl.load(mine + 2, mask=inside, other=0.0), tl.load(mine + 3, mask=inside, other=0.0)
    m2_delta = tl.load(mine + 4, mask=inside, other=0.0)
    m2_m = m2_p + 2 * t * c + t * t * m2_delta
    mean_m = mean_p + t * mean_delta
    # What the group's variance will be summed from, but for the move's part between segments.
    n = tl.load(segments + 5 * lane + 1, mask=inside & (flags & MASKED == 0), other=0).to(tl.float64)
    off = mean_p - tl.load(out + 5 * lane + 2, mask=inside, other=0.0)
    terms = m2_p + t * t * m2_delta + n * (off * off + _OF_MEAN * (mean_p * mean_p + mean_m * mean_m))
    # A tile smaller than the program lives in several threads at once: all have read their row before one writes it.
    tl.debug_barrier()
    tl.store(mine, mean_m, mask=inside)
    tl.store(mine + 1, tl.where(m2_m < 0, 0.0, m2_m), mask=inside)
    tl.store(mine + 2, terms, mask=inside)
    tl.store(mine + 3, t, mask=inside)
    tl.store(mine + 4, mean_m - off, mask=inside)


@triton.jit
def rescale(
    segments,
    target_variance,
    epsilon,
    work,
    out,
    low,
    end,
    count,
    DESTINATION: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Phase 3: back onto the spheres, and the map itself."""
    ABOUT_MEAN: tl.constexpr = (DESTINATION == MEAN) | (DESTINATION == VARIANCE_SPHERE)
    lane = low + tl.arange(0, LANES)
    inside = lane < end
    flags = tl.load(segments + 5 * lane + 4, mask=inside, other=0)
    there = inside & (flags & MASKED == 0)
    first, size = group_of(segments + 3, lane, inside, count, WIDTH)
    n_group = group_count(segments, first, size, LANES, WIDTH)
    group_mean, group_m2 = pool(work, work + 1, segments, first, size, n_group, LANES, WIDTH)
    reference = group_total(work + 2, 5, first, size, LANES, WIDTH)
    reference += group_spread(work + 4, segments, first, size, group_mean, LANES, WIDTH)
    target = tl.load(target_variance + lane, mask=there, other=0.0)
    fixed = (flags & FREE != 0) | ~there | (n_group <= 1)
    s = to_target(target, epsilon, n_group, group_m2, reference, fixed)

    result = out + 5 * lane
    t = tl.load(work + 5 * lane + 3, mask=inside, other=0.0)
    s0, c0 = tl.load(result + 3, mask=inside, other=0.0), tl.load(result + 4, mask=inside, other=0.0)
    if DESTINATION == POINT:
        share = s * (1.0 - t)
        b = s * t
        c = share * c0 + (1.0 - s) * group_mean
    else:
        alpha, mean_q = tl.load(result + 1, mask=inside, other=0.0), tl.load(result + 2, mask=inside, other=0.0)
        share = s * (1.0 - t + t * alpha)
        b = tl.zeros([LANES], tl.float64)
        c = share * c0
        if ABOUT_MEAN:
            c += s * t * (1.0 - alpha) * mean_q
        c += (1.0 - s) * group_mean
    tl.debug_barrier()
    tl.store(result, tl.where(there, share * s0, 1.0), mask=inside)
    tl.store(result + 1, tl.where(there, b, 0.0), mask=inside)
    tl.store(result + 2, tl.where(there, c, 0.0), mask=inside)


@triton.jit(
    do_not_specialize=["count", "target_stride", "step_stride"],
    do_not_specialize_on_alignment=["moments", "target_variance", "step", "active", "radius", "work", "out"],
)
def coefficient_kernel(
    moments,
    segments,
    target_variance,
    step,
    active,
    radius,
    work,
    out,
    count,
    target_stride,
    step_stride,
    epsilon: tl.float64,
    ACTIVE: tl.constexpr,
    DESTINATION: tl.constexpr,
    SUM: tl.constexpr,
    CLAMP: tl.constexpr,
    PROJECT: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One path's segments from the first head in [LANES b, LANES (b + 1)) up to the first head beyond.

    A head is where both kinds of group begin, so no group leaves the range and programs need nothing of each other.
    Three phases with a barrier between them; between phases ``out`` and ``work`` hold what others will read:

        phase      out                                            work
        project    distance^2, alpha, mean of the group, a0, c0   mean_p, M2_p, mean_delta, C, M2_delta
        move       (unchanged)                                    mean_m, M2_m, terms of the latter, t, mean_m - off
        rescale    a, b, c, a0, c0

    Nothing is overwritten in a phase in which another segment reads it, so a range may have any number of tiles. The
    usual range has one; about ten dependent loads, three to five microseconds.
    """
    row = tl.program_id(1).to(tl.int64)
    low = tl.program_id(0).to(tl.int64) * LANES
    moments += 5 * row * count
    work += 5 * row * count
    out += 5 * row * count
    target_variance += row * target_stride
    is_active = low >= 0
    if ACTIVE > 0:
        is_active = tl.load(active + row * ACTIVE) != 0
    if is_active:
        begin = first_head(segments, low, count, LANES)
        if begin < tl.minimum(low + LANES, count):
            beyond = low + LANES
            end = first_head(segments, beyond, count, LANES)
            while (end == beyond + LANES) & (end < count):
                beyond += LANES
                end = first_head(segments, beyond, count, LANES)
            at = begin
            while at < end:
                project(
                    moments, segments, target_variance, radius, epsilon, work, out, at, end, count,
                    DESTINATION, PROJECT, LANES, WIDTH,
                )  # fmt: skip
                at += LANES
            tl.debug_barrier()
            at = begin
            while at < end:
                move(segments, step + row * step_stride, work, out, at, end, count, SUM, CLAMP, LANES, WIDTH)
                at += LANES
            tl.debug_barrier()
            at = begin
            while at < end:
                rescale(
                    segments, target_variance, epsilon, work, out, at, end, count, DESTINATION, LANES, WIDTH
                )  # fmt: skip
                at += LANES
    else:
        lane = low + tl.arange(0, LANES)
        inside = lane < count
        one, nothing = tl.full([LANES], 1.0, tl.float64), tl.zeros([LANES], tl.float64)
        tl.store(out + 5 * lane, one, mask=inside)
        tl.store(out + 5 * lane + 1, nothing, mask=inside)
        tl.store(out + 5 * lane + 2, nothing, mask=inside)
        tl.store(out + 5 * lane + 3, one, mask=inside)
        tl.store(out + 5 * lane + 4, nothing, mask=inside)
