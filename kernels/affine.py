# mypy: allow-untyped-defs
"""``affine_`` in Triton, and the elementwise kernel that it shares with ``tick_``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.affine import check_affine, inspect_affine

from .constants import MASKED
from .launch import WARPS, launch, paths_and_length, row_columns, row_stride, walk_constants
from .walk import chunk_of_program, is_whole, load_tile, store_tile, tile_at, tile_mask

#: The largest and the smallest normal number of float32.
_MOST = tl.constexpr(torch.finfo(torch.float32).max)
_LEAST = tl.constexpr(torch.finfo(torch.float32).smallest_normal)


def affine_triton(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """The op :func:`llpf_fast.ops.affine_`, same arguments and errors."""
    check_affine(p, d, coefficients, segments, chunks)
    inspect_affine(p, d, coefficients, segments, chunks)
    launch_maps(p, d, coefficients, segments, chunks, None, None)


def launch_maps(
    p: Tensor,
    d: Tensor | None,
    maps: Tensor,
    segments: Tensor,
    chunks: Tensor,
    waypoint: Tensor | None,
    active: Tensor | None,
) -> None:
    """Write a p + b d + c into p and, in the same pass, a0 p + c0 into ``waypoint`` for the active paths."""
    paths, length = paths_and_length(p)
    launch(
        map_kernel,
        (chunks.shape[0], paths),
        p,
        p,
        d,
        maps,
        segments,
        chunks,
        waypoint,
        active,
        length,
        row_stride(d, length),
        segments.shape[0],
        ACTIVE=row_columns(active, paths),
        warps=WARPS,
        **walk_constants(p),
    )


@triton.jit
def map_tile(
    p,
    d,
    waypoint,
    at,
    at_d,
    left,
    a,
    b,
    c,
    a0,
    c0,
    moves,
    projects,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    tile = tile_at(p, at, VECTOR)
    stored = load_tile(tile, left, VECTOR, BLOCK)
    old = stored.to(a.dtype)
    if waypoint is not None:
        projected = tl.where(projects, tl.fma(a0, old, c0).to(stored.dtype), stored)
        store_tile(tile_at(waypoint, at, VECTOR), projected, left, VECTOR, BLOCK)
    shift = c
    if d is not None:
        wanted = tile_mask(b != 0, left, VECTOR, BLOCK)
        toward = tl.load(tile_at(d, at_d, VECTOR) + lane, mask=wanted, other=0.0)
        shift = tl.fma(b, toward.to(a.dtype), c)
    new = tl.fma(a, old, shift).to(stored.dtype)
    tl.store(tile + lane, new, mask=tile_mask(moves, left, VECTOR, BLOCK))


@triton.jit
def is_wide(factor):
    """Whether float32 cannot hold a factor: below the normal numbers it loses digits, beyond them it is infinite."""
    size = tl.abs(factor)
    return (size > _MOST) | ((size > 0) & (size < _LEAST))


@triton.jit
def wide_tile(
    p,
    d,
    waypoint,
    at,
    at_d,
    left,
    wide,
    a,
    b,
    c,
    a0,
    c0,
    moves,
    projects,
    wide_tick,
    wide_projection,
    BLOCK: tl.constexpr,
):
    """The same as ``map_tile`` where float32 cannot hold one of the maps: that one in float64, the other as always.

    ``wide`` points at the float64 map, a to c0 are rounded.
    """
    lane = tl.arange(0, BLOCK)
    mask = lane < left
    stored = tl.load(p + at + lane, mask=mask, other=0.0)
    old, exact = stored.to(a.dtype), stored.to(tl.float64)
    if waypoint is not None:
        projected = tl.fma(a0, old, c0).to(stored.dtype)
        widely = tl.fma(tl.load(wide + 3), exact, tl.load(wide + 4)).to(a.dtype).to(stored.dtype)
        projected = tl.where(projects, tl.where(wide_projection, widely, projected), stored)
        tl.store(waypoint + at + lane, projected, mask=mask)
    shift, wide_shift = c, tl.load(wide + 2)
    if d is not None:
        wide_b = tl.load(wide + 1)
        reads = tl.full([BLOCK], (wide_b != 0).to(tl.int32), tl.int32) != 0
        toward = tl.load(d + at_d + lane, mask=mask & reads, other=0.0)
        shift = tl.fma(b, toward.to(a.dtype), c)
        wide_shift = tl.fma(wide_b, toward.to(tl.float64), wide_shift)
    new = tl.fma(a, old, shift).to(stored.dtype)
    widely = tl.fma(tl.load(wide), exact, wide_shift).to(a.dtype).to(stored.dtype)
    moving = tl.full([BLOCK], moves.to(tl.int32), tl.int32) != 0
    tl.store(p + at + lane, tl.where(wide_tick, widely, new), mask=mask & moving)


@triton.jit(
    do_not_specialize=["length", "d_stride", "segment_count"], do_not_specialize_on_alignment=["maps", "active"]
)
def map_kernel(
    p,
    d,
    maps,
    segments,
    chunks,
    waypoint,
    active,
    length,
    d_stride,
    segment_count,
    ACTIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """One chunk. Coefficients are rounded once to the arithmetic's type; whether a map is the identity is asked before.

    p is read before anything is written, so p and d may be the same tensor.
    """
    row, segment, start, size, flags = chunk_of_program(segments, chunks)
    wide = maps + 5 * (row * segment_count + segment)
    wide_a, wide_b, wide_c = tl.load(wide), tl.load(wide + 1), tl.load(wide + 2)
    moves = (flags & MASKED == 0) & ~((wide_a == 1) & (wide_b == 0) & (wide_c == 0))
    a, b, c = wide_a.to(COMPUTE), wide_b.to(COMPUTE), wide_c.to(COMPUTE)
    # The rounded b decides about reading d: a b too small for the arithmetic's type adds nothing.
    a0, c0, projects, wanted = a, c, moves, moves
    wide_tick = is_wide(wide_a) | is_wide(wide_b) | (tl.abs(wide_c) > _MOST)
    wide_projection = size < 0
    if waypoint is not None:
        wide_a0, wide_c0 = tl.load(wide + 3), tl.load(wide + 4)
        a0, c0 = wide_a0.to(COMPUTE), wide_c0.to(COMPUTE)
        projects = ~((wide_a0 == 1) & (wide_c0 == 0))
        wide_projection = is_wide(wide_a0) | (tl.abs(wide_c0) > _MOST)
        wanted = size > 0
        if ACTIVE > 0:
            wanted = tl.load(active + row * ACTIVE) != 0
    if a.dtype == tl.float32:  # noqa: SIM102, known when compiling
        if wanted & (wide_tick | wide_projection):
            wanted = size < 0
            single = tl.full([], 0, tl.int64)
            while single < size:
                at, at_d = row * length + start + single, row * d_stride + start + single
                wide_tile(
                    p, d, waypoint, at, at_d, size - single, wide, a, b, c, a0, c0, moves, projects,
                    wide_tick, wide_projection, RAGGED,
                )  # fmt: skip
                single += RAGGED
    if wanted:
        done = tl.full([], 0, tl.int64)
        while done < size:
            left = size - done
            at, at_d = row * length + start + done, row * d_stride + start + done
            tile = tl.full([], RAGGED, tl.int64)
            if is_whole(start + done, left, ALIGNED, BLOCK):
                tile = tl.full([], BLOCK, tl.int64)
                map_tile(p, d, waypoint, at, at_d, left, a, b, c, a0, c0, moves, projects, VECTOR, BLOCK)
            else:
                map_tile(p, d, waypoint, at, at_d, left, a, b, c, a0, c0, moves, projects, 1, RAGGED)
            done += tile
