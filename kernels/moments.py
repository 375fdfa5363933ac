# mypy: allow-untyped-defs
"""``moments`` in Triton: partial sums of every chunk, then one program a segment combines its chunks. All float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.library import MOMENT_COLUMNS, rows
from llpf_fast.ops.moments import check_moments, inspect_moments

from .constants import MASKED
from .launch import WARPS, launch, paths_and_length, row_stride, walk_constants
from .walk import chunk_of_program, is_whole, load_tile, tile_at

#: Chunks a program combines at a time. A segment of 2 million elements is one step; one of 1e9 takes 480 steps of loads
#: that do not wait for each other, about a sixth of the pass over its data.
_LANES = 512


def moments_triton(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> Tensor:
    """The op :func:`llpf_fast.ops.moments`, same arguments and errors."""
    check_moments(p, d, segments, chunks, scratch)
    inspect_moments(p, d, segments, chunks, scratch)
    out = p.new_empty((*p.shape[:-1], segments.shape[0], MOMENT_COLUMNS), dtype=torch.float64)
    launch_moments(p, d, segments, chunks, scratch, out)
    return out


def launch_moments(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor, out: Tensor) -> None:
    """Moments of (p, d) into ``out`` (float64, K S 5 elements), by way of the first 5 K C elements of ``scratch``."""
    paths, length = paths_and_length(p)
    launch(
        chunk_kernel,
        (chunks.shape[0], paths),
        p,
        p,
        d,
        segments,
        chunks,
        scratch,
        length,
        row_stride(d, length),
        warps=WARPS,
        **walk_constants(p),
    )
    launch_combine(p, segments, chunks, scratch, out)


def launch_combine(p: Tensor, segments: Tensor, chunks: Tensor, partial: Tensor, out: Tensor) -> None:
    """Chunk partials to segment moments."""
    launch(
        combine_kernel,
        (segments.shape[0], rows(p)),
        p,
        segments,
        chunks,
        partial,
        out,
        segments.shape[0],
        chunks.shape[0],
        LANES=_LANES,
        warps=8,
    )


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


@triton.jit
def store_partial(partial, row, mean_p, mean_d, m2_p, c, m2_d):
    """``partial`` is [K, 5, C]: the combining program reads each column in one sweep."""
    count = tl.num_programs(0).to(tl.int64)
    at = partial + 5 * row * count + tl.program_id(0)
    tl.store(at, mean_p)
    tl.store(at + count, mean_d)
    tl.store(at + 2 * count, m2_p)
    tl.store(at + 3 * count, c)
    tl.store(at + 4 * count, m2_d)


@triton.jit
def measure_tile(p, d, at_p, at_d, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    x = load_tile(tile_at(p, at_p, VECTOR), left, VECTOR, BLOCK)
    if d is None:
        return tile_moments(x, None, tl.load(p + at_p), None, left, VECTOR, BLOCK)
    else:
        y = load_tile(tile_at(d, at_d, VECTOR), left, VECTOR, BLOCK)
        return tile_moments(x, y, tl.load(p + at_p), tl.load(d + at_d), left, VECTOR, BLOCK)


@triton.jit(do_not_specialize=["length", "d_stride"], do_not_specialize_on_alignment=["partial"])
def chunk_kernel(
    p,
    d,
    segments,
    chunks,
    partial,
    length,
    d_stride,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Moments of one chunk. Tiles of a chunk longer than BLOCK are joined by Chan's formula, in order."""
    row, _segment, start, size, flags = chunk_of_program(segments, chunks)
    if flags & MASKED == 0:
        zero = tl.full([], 0.0, tl.float64)
        n, mean_p, mean_d, m2_p, c, m2_d = zero, zero, zero, zero, zero, zero
        done = tl.full([], 0, tl.int64)
        while done < size:
            at, left = start + done, size - done
            at_p, at_d = row * length + at, row * d_stride + at
            tile = tl.full([], RAGGED, tl.int64)
            if is_whole(at, left, ALIGNED, BLOCK):
                tile = tl.full([], BLOCK, tl.int64)
                a, b, e, f, g = measure_tile(p, d, at_p, at_d, left, VECTOR, BLOCK)
            else:
                a, b, e, f, g = measure_tile(p, d, at_p, at_d, left, 1, RAGGED)
            count = tl.minimum(left, tile).to(tl.float64)
            n, mean_p, mean_d, m2_p, c, m2_d = chan(n, mean_p, mean_d, m2_p, c, m2_d, count, a, b, e, f, g)
            done += tile
        store_partial(partial, row, mean_p, mean_d, m2_p, c, m2_d)


@triton.jit
def first_chunk(chunks, count, segment, LANES: tl.constexpr):
    """Number of chunks whose segment is below ``segment``: where its chunks begin.

    A search with LANES probes a step: a million chunks take two dependent loads, not the twenty of a bisection.
    """
    lane = tl.arange(0, LANES).to(tl.int64)
    low = tl.full([], 0, tl.int64)
    high = count.to(tl.int64)
    while low < high:
        stride = (high - low + LANES - 1) // LANES
        probe = low + (lane + 1) * stride - 1
        inside = probe < high
        below = inside & (tl.load(chunks + 3 * probe, mask=inside, other=0) < segment)
        low += stride * tl.sum(below.to(tl.int64), 0)
        # The last probe of the block that now begins at `low` is known not to be below, or lies beyond `high`.
        high = tl.minimum(high, low + stride - 1)
    return low


@triton.jit(do_not_specialize=["segment_count", "chunk_count"], do_not_specialize_on_alignment=["partial", "out"])
def combine_kernel(
    segments,
    chunks,
    partial,
    out,
    segment_count,
    chunk_count,
    LANES: tl.constexpr,
):
    """Moments of one segment of one path from those of its chunks, in an order fixed by the table alone.

    Each lane runs Chan's formula over every LANES-th chunk, which needs no exchange between threads; the lanes are
    then joined at once about their common mean.
    """
    segment, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    nothing = tl.zeros([LANES], tl.float64)
    n, mean_p, mean_d, m2_p, c, m2_d = nothing, nothing, nothing, nothing, nothing, nothing
    if tl.load(segments + 5 * segment + 4) & MASKED == 0:
        first = first_chunk(chunks, chunk_count, segment, LANES)
        end = first_chunk(chunks, chunk_count, segment + 1, LANES)
        count = chunk_count.to(tl.int64)
        column = partial + 5 * row * count
        at = first
        while at < end:
            lane = at + tl.arange(0, LANES)
            valid = lane < end
            n, mean_p, mean_d, m2_p, c, m2_d = chan(
                n,
                mean_p,
                mean_d,
                m2_p,
                c,
                m2_d,
                tl.load(chunks + 3 * lane + 2, mask=valid, other=0).to(tl.float64),
                tl.load(column + lane, mask=valid, other=0.0),
                tl.load(column + count + lane, mask=valid, other=0.0),
                tl.load(column + 2 * count + lane, mask=valid, other=0.0),
                tl.load(column + 3 * count + lane, mask=valid, other=0.0),
                tl.load(column + 4 * count + lane, mask=valid, other=0.0),
            )
            at += LANES
    total = tl.sum(n, 0)
    share = tl.where(n > 0, n / total, 0.0)
    # Shifted by lane 0, which is never empty: equal means stay equal to the last bit.
    origin = tl.arange(0, LANES) == 0
    shift_p = tl.sum(tl.where(origin, mean_p, 0.0), 0)
    shift_d = tl.sum(tl.where(origin, mean_d, 0.0), 0)
    all_p = shift_p + tl.sum(tl.where(n > 0, share * (mean_p - shift_p), 0.0), 0)
    all_d = shift_d + tl.sum(tl.where(n > 0, share * (mean_d - shift_d), 0.0), 0)
    off_p = tl.where(n > 0, mean_p - all_p, 0.0)
    off_d = tl.where(n > 0, mean_d - all_d, 0.0)
    to = out + 5 * (row * segment_count + segment)
    tl.store(to, all_p)
    tl.store(to + 1, all_d)
    tl.store(to + 2, tl.sum(m2_p + n * off_p * off_p, 0))
    tl.store(to + 3, tl.sum(c + n * off_p * off_d, 0))
    tl.store(to + 4, tl.sum(m2_d + n * off_d * off_d, 0))
