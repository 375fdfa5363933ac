# mypy: allow-untyped-defs
"""``sgd_`` in Triton: the update, and in the same registers the moments that the next tick starts from."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.sgd import check_sgd, inspect_sgd

from .flags import FROZEN, MASKED
from .launch import WARPS, gate_columns, launch, paths_and_length, row_stride, walk_constants
from .moments import launch_combine, store_partial
from .reduction import chan, tile_moments
from .walk import chunk_of_program, is_whole, load_tile, tile_at, tile_mask


def sgd_triton(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    gate: Tensor | None,
    d: Tensor | None,
    moments_out: Tensor | None,
    scratch: Tensor | None,
    *,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """The op :func:`llpf_fast.ops.sgd_`, same arguments and errors.

    With ``moments_out`` a second tiny launch combines the chunks. Both ask the gate whether this update is the last:
    the rounds before it neither read ``d`` nor reduce anything.
    """
    check_sgd(
        p, g, momentum_buffer, lr, segments, chunks, gate, d, moments_out, scratch, momentum, dampening, weight_decay,
        nesterov,
    )  # fmt: skip
    inspect_sgd(p, g, momentum_buffer, lr, segments, chunks, gate, d, moments_out, scratch)
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
        gate,
        d if moments_out is not None else None,
        scratch if moments_out is not None else None,
        length,
        row_stride(d, length),
        row_stride(lr, lr.shape[-1] if lr.dim() else 1),
        int(lr.dim() > 0 and lr.shape[-1] > 1),
        momentum,
        1.0 - dampening,
        weight_decay,
        DECAY=weight_decay != 0.0,
        NESTEROV=nesterov,
        GATE=gate_columns(gate, paths),
        warps=WARPS,
        **walk_constants(p),
    )
    if moments_out is not None:
        assert scratch is not None
        launch_combine(p, segments, chunks, scratch, moments_out, gate)


@triton.jit
def updated_tile(
    p,
    g,
    buffer,
    at,
    left,
    rate,
    momentum,
    share,
    decay,
    trains,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The tile after the update, as stored. A segment that does not train is only read, and its gradient is not."""
    lane = tl.arange(0, BLOCK)
    tile = tile_at(p, at, VECTOR)
    stored = load_tile(tile, left, VECTOR, BLOCK)
    old = stored.to(rate.dtype)
    wanted = tile_mask(trains, left, VECTOR, BLOCK)
    direction = tl.load(tile_at(g, at, VECTOR) + lane, mask=wanted, other=0.0).to(rate.dtype)
    if DECAY:
        direction = tl.fma(decay, old, direction)
    if buffer is not None:
        memory = tile_at(buffer, at, VECTOR) + lane
        before = tl.load(memory, mask=wanted, other=0.0)
        moving = tl.fma(momentum, before.to(rate.dtype), share * direction)
        tl.store(memory, moving.to(before.dtype), mask=wanted)
        direction = tl.fma(momentum, moving, direction) if NESTEROV else moving
    new = tl.fma(-rate, direction, old).to(stored.dtype)
    tl.store(tile + lane, new, mask=wanted)
    return tl.where(trains, new, stored)


@triton.jit
def first_of(values, BLOCK: tl.constexpr):
    """The first element of a tile in registers: a sum of one term, since another thread may hold it."""
    return tl.sum(tl.where(tl.arange(0, BLOCK) == 0, values, 0.0), 0)


@triton.jit
def train_and_measure(
    p,
    g,
    buffer,
    d,
    at,
    at_d,
    left,
    rate,
    momentum,
    share,
    decay,
    trains,
    measures,
    MEASURE: tl.constexpr,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one tile; its moments where they are wanted, else zeros."""
    x = updated_tile(p, g, buffer, at, left, rate, momentum, share, decay, trains, DECAY, NESTEROV, VECTOR, BLOCK)
    zero = tl.full([], 0.0, tl.float64)
    mean_p, mean_d, m2_p, c, m2_d = zero, zero, zero, zero, zero
    if MEASURE:  # noqa: SIM102, known when compiling: without it there is no d to read
        if measures:
            first_x = first_of(x.to(rate.dtype), BLOCK)
            if d is None:
                mean_p, mean_d, m2_p, c, m2_d = tile_moments(x, None, first_x, None, left, VECTOR, BLOCK)
            else:
                y = load_tile(tile_at(d, at_d, VECTOR), left, VECTOR, BLOCK)
                first_y = first_of(y.to(rate.dtype), BLOCK)
                mean_p, mean_d, m2_p, c, m2_d = tile_moments(x, y, first_x, first_y, left, VECTOR, BLOCK)
    return mean_p, mean_d, m2_p, c, m2_d


@triton.jit(
    do_not_specialize=["length", "d_stride", "lr_row", "lr_column"],
    do_not_specialize_on_alignment=["lr", "gate", "partial"],
)
def sgd_kernel(
    p,
    g,
    buffer,
    lr,
    segments,
    chunks,
    gate,
    d,
    partial,
    length,
    d_stride,
    lr_row,
    lr_column,
    momentum: tl.float64,
    share: tl.float64,
    weight_decay: tl.float64,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    GATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """One chunk. ``share`` is 1 - dampening; scalars are rounded once to the arithmetic's type."""
    row, segment, start, size, flags = chunk_of_program(segments, chunks)
    is_open = size > 0
    is_last = is_open
    if GATE > 0:
        is_open = tl.load(gate + row * GATE) != 0
        is_last = is_open
        if GATE > 1:
            is_last = is_open & (tl.load(gate + row * GATE + 1) != 0)
    MEASURE: tl.constexpr = partial is not None
    trains = is_open & (flags & FROZEN == 0)
    measures = is_last & (flags & MASKED == 0) & MEASURE
    if trains | measures:
        rate = tl.load(lr + row * lr_row + segment * lr_column).to(COMPUTE)
        beta = tl.full([], momentum, COMPUTE)
        fresh = tl.full([], share, COMPUTE)
        decay = tl.full([], weight_decay, COMPUTE)
        zero = tl.full([], 0.0, tl.float64)
        n, mean_p, mean_d, m2_p, c, m2_d = zero, zero, zero, zero, zero, zero
        done = tl.full([], 0, tl.int64)
        while done < size:
            left = size - done
            at, at_d = row * length + start + done, row * d_stride + start + done
            tile = tl.full([], RAGGED, tl.int64)
            if is_whole(start + done, left, ALIGNED, BLOCK):
                tile = tl.full([], BLOCK, tl.int64)
                a, b, e, f, h = train_and_measure(
                    p, g, buffer, d, at, at_d, left, rate, beta, fresh, decay, trains, measures,
                    MEASURE, DECAY, NESTEROV, VECTOR, BLOCK,
                )  # fmt: skip
            else:
                a, b, e, f, h = train_and_measure(
                    p, g, buffer, d, at, at_d, left, rate, beta, fresh, decay, trains, measures,
                    MEASURE, DECAY, NESTEROV, 1, RAGGED,
                )  # fmt: skip
            if MEASURE:
                count = tl.minimum(left, tile).to(tl.float64)
                n, mean_p, mean_d, m2_p, c, m2_d = chan(n, mean_p, mean_d, m2_p, c, m2_d, count, a, b, e, f, h)
            done += tile
        if MEASURE:  # noqa: SIM102, likewise
            if measures:
                store_partial(partial, row, mean_p, mean_d, m2_p, c, m2_d)
