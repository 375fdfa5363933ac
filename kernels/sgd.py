# mypy: allow-untyped-defs
"""``sgd_`` in Triton: one program a chunk of one path."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.sgd import check_sgd, inspect_sgd

from .constants import FROZEN
from .launch import WARPS, launch, paths_and_length, row_columns, row_stride, walk_constants
from .walk import chunk_of_program, is_whole, load_tile, store_tile, tile_at


def sgd_triton(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """The op :func:`llpf_fast.ops.sgd_`, same arguments and errors."""
    check_sgd(p, g, momentum_buffer, lr, segments, chunks, active, momentum, weight_decay, nesterov)
    inspect_sgd(p, g, momentum_buffer, lr, segments, chunks, active)
    paths, length = paths_and_length(p)
    launch(
        sgd_kernel,
        (chunks.shape[0], paths),
        p,
        p,
        g,
        momentum_buffer,
        lr,
        segments,
        chunks,
        active,
        length,
        row_stride(lr, lr.shape[-1] if lr.dim() else 1),
        int(lr.dim() > 0 and lr.shape[-1] > 1),
        momentum,
        weight_decay,
        DECAY=weight_decay != 0.0,
        NESTEROV=nesterov,
        ACTIVE=row_columns(active, paths),
        warps=WARPS,
        **walk_constants(p),
    )


@triton.jit
def update_tile(
    p,
    g,
    buffer,
    at,
    left,
    rate,
    momentum,
    decay,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tile_at(p, at, VECTOR)
    stored = load_tile(tile, left, VECTOR, BLOCK)
    old = stored.to(rate.dtype)
    direction = load_tile(tile_at(g, at, VECTOR), left, VECTOR, BLOCK).to(rate.dtype)
    if DECAY:
        direction = tl.fma(decay, old, direction)
    if buffer is not None:
        memory = tile_at(buffer, at, VECTOR)
        before = load_tile(memory, left, VECTOR, BLOCK)
        moving = tl.fma(momentum, before.to(rate.dtype), direction)
        store_tile(memory, moving.to(before.dtype), left, VECTOR, BLOCK)
        direction = tl.fma(momentum, moving, direction) if NESTEROV else moving
    store_tile(tile, tl.fma(-rate, direction, old).to(stored.dtype), left, VECTOR, BLOCK)


@triton.jit(do_not_specialize=["length", "lr_row", "lr_column"], do_not_specialize_on_alignment=["lr", "active"])
def sgd_kernel(
    p,
    g,
    buffer,
    lr,
    segments,
    chunks,
    active,
    length,
    lr_row,
    lr_column,
    momentum: tl.float64,
    weight_decay: tl.float64,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    ACTIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """One chunk; scalars are rounded once to the arithmetic's type."""
    row, segment, start, size, flags = chunk_of_program(segments, chunks)
    trains = flags & FROZEN == 0
    if ACTIVE > 0:
        trains = trains & (tl.load(active + row * ACTIVE) != 0)
    if trains:
        rate = tl.load(lr + row * lr_row + segment * lr_column).to(COMPUTE)
        beta = tl.full([], momentum, COMPUTE)
        decay = tl.full([], weight_decay, COMPUTE)
        done = tl.full([], 0, tl.int64)
        while done < size:
            left = size - done
            at = row * length + start + done
            tile = tl.full([], RAGGED, tl.int64)
            if is_whole(start + done, left, ALIGNED, BLOCK):
                tile = tl.full([], BLOCK, tl.int64)
                update_tile(p, g, buffer, at, left, rate, beta, decay, DECAY, NESTEROV, VECTOR, BLOCK)
            else:
                update_tile(p, g, buffer, at, left, rate, beta, decay, DECAY, NESTEROV, 1, RAGGED)
            done += tile
