# mypy: allow-untyped-defs
"""``draw_`` in Triton: one program a row of a path and 256 columns."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.draw import MOST_ROWS, check_draw, inspect_draw
from llpf_fast.ops.loss_gate import ROUNDS

from .flags import MOST_ROUNDS
from .launch import gate_columns, launch

LANES = 256


def draw_triton(out: Tensor, key: Tensor, first: Tensor, gate: Tensor | None, *, bounds: Sequence[int]) -> None:
    """The op :func:`llpf_fast.ops.draw_`, same arguments and errors."""
    paths = check_draw(out, key, first, gate, bounds)
    inspect_draw(out, key, first, gate, paths)
    rows, columns = out.shape[-2:]
    launch(
        draw_kernel,
        (paths * rows, triton.cdiv(columns, LANES)),
        out,
        out,
        key,
        first,
        gate,
        gate_columns(gate, paths),
        rows,
        columns,
        *bounds,
        *[1] * (MOST_ROWS - rows),
        ROUNDS=ROUNDS,
        LANES=LANES,
        warps=4,
    )


@triton.jit
def mixed(value):
    """lowbias32; products of uint32 wrap."""
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def absorbed(key, part):
    return mixed(key + mixed(part + 0x85EBCA6B))


@triton.jit(do_not_specialize=["gate_columns", "rows", "columns", "bound0", "bound1", "bound2", "bound3"])
def draw_kernel(
    out,
    key,
    first,
    gate,
    gate_columns: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    bound0: tl.int64,
    bound1: tl.int64,
    bound2: tl.int64,
    bound3: tl.int64,
    ROUNDS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Row 0 draws from the stream of batches, rows 1.. from that of augmentation, as the eager kernel does."""
    path = tl.program_id(0) // rows
    row = tl.program_id(0) % rows
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    number = tl.load(first + path)
    if gate is not None:
        rounds = tl.load(gate + path * gate_columns + ROUNDS)
        counts = (rounds >= 0) & (rounds <= MOST_ROUNDS) & (tl.floor(rounds) == rounds)
        number += tl.where(counts, rounds, 0.0).to(tl.int64)
    counted = tl.load(key + path).to(tl.uint32)
    counted = absorbed(counted, number.to(tl.uint32))
    counted = absorbed(counted, (number >> 32).to(tl.uint32))
    zero = counted ^ counted
    augmentation = mixed(absorbed(counted, zero + 1) + (row - 1).to(tl.uint32))
    stream = tl.where(row == 0, absorbed(counted, zero), augmentation)
    bits = mixed(mixed(lane.to(tl.uint32) ^ stream) + (stream >> 7))
    bound = tl.where(row == 0, bound0, tl.where(row == 1, bound1, tl.where(row == 2, bound2, bound3)))
    drawn = (bits.to(tl.int64) * bound) >> 32
    tl.store(out + (path * rows + row).to(tl.int64) * columns + lane, drawn, mask=lane < columns)
