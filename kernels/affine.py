# mypy: allow-untyped-defs
"""``affine_`` in Triton, and the elementwise kernel that it shares with ``tick_``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.affine import check_affine
from llpf_fast.ops.library import check_no_partial_overlap

from .flags import MASKED
from .launch import WARPS, launch, paths_and_length, row_stride, walk_constants
from .walk import chunk_of_program, is_whole, load_tile, store_tile, tile_at, tile_mask


def affine_triton(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """The op :func:`llpf_fast.ops.affine_`, same arguments and errors."""
    check_affine(p, d, coefficients, segments, chunks)
    if d is not None:
        check_no_partial_overlap("affine_", p, "d", d)
    launch_maps(p, d, coefficients, segments, chunks, None, None)


def launch_maps(
    p: Tensor,
    d: Tensor | None,
    maps: Tensor,
    segments: Tensor,
    chunks: Tensor,
    waypoint: Tensor | None,
    gate: Tensor | None,
) -> None:
    """Write a p + b d + c into p and, in the same pass, a0 p + c0 into ``waypoint`` for the paths that are open."""
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
        gate,
        length,
        row_stride(d, length),
        segments.shape[0],
        GATE=0 if gate is None else gate.numel() // paths,
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


@triton.jit(do_not_specialize=["length", "d_stride", "segment_count"], do_not_specialize_on_alignment=["maps", "gate"])
def map_kernel(
    p,
    d,
    maps,
    segments,
    chunks,
    waypoint,
    gate,
    length,
    d_stride,
    segment_count,
    GATE: tl.constexpr,
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
    if waypoint is not None:
        wide_a0, wide_c0 = tl.load(wide + 3), tl.load(wide + 4)
        a0, c0 = wide_a0.to(COMPUTE), wide_c0.to(COMPUTE)
        projects = ~((wide_a0 == 1) & (wide_c0 == 0))
        wanted = size > 0
        if GATE > 0:
            wanted = tl.load(gate + row * GATE) != 0
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
