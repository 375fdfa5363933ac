# mypy: allow-untyped-defs
"""``counter_randint_`` in Triton: one program a row of a path and 256 columns."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.counter_randint import MOST_ROWS, check_counter_randint, inspect_counter_randint

from .constants import MOST_STEPS, STEPS
from .launch import launch, row_columns

LANES = 256


def counter_randint_triton(
    out: Tensor, key: Tensor, first: Tensor, state: Tensor | None, *, bounds: Sequence[int]
) -> None:
    """The op :func:`llpf_fast.ops.counter_randint_`, same arguments and errors."""
    paths = check_counter_randint(out, key, first, state, bounds)
    inspect_counter_randint(out, key, first, state, paths)
    rows, columns = out.shape[-2:]
    launch(
        counter_randint_kernel,
        (paths * rows, triton.cdiv(columns, LANES)),
        out,
        out,
        key,
        first,
        state,
        row_columns(state, paths),
        rows,
        columns,
        *bounds,
        *[1] * (MOST_ROWS - rows),
        LANES=LANES,
        warps=4,
    )


@triton.jit
def hash32(value):
    """lowbias32; products of uint32 wrap."""
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def absorb(key, part):
    return hash32(key + hash32(part + 0x85EBCA6B))


@triton.jit(do_not_specialize=["row_columns", "rows", "columns", "bound0", "bound1", "bound2", "bound3"])
def counter_randint_kernel(
    out,
    key,
    first,
    state,
    row_columns: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    bound0: tl.int64,
    bound1: tl.int64,
    bound2: tl.int64,
    bound3: tl.int64,
    LANES: tl.constexpr,
):
    """Row 0 is of the stream of batches, rows 1.. of that of augmentation, as the eager kernel does."""
    path = tl.program_id(0) // rows
    row = tl.program_id(0) % rows
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    number = tl.load(first + path)
    if state is not None:
        steps = tl.load(state + path * row_columns + STEPS)
        counts = (steps >= 0) & (steps <= MOST_STEPS) & (tl.floor(steps) == steps)
        number += tl.where(counts, steps, 0.0).to(tl.int64)
    counted = tl.load(key + path).to(tl.uint32)
    counted = absorb(counted, number.to(tl.uint32))
    counted = absorb(counted, (number >> 32).to(tl.uint32))
    zero = counted ^ counted
    augmentation = hash32(absorb(counted, zero + 1) + (row - 1).to(tl.uint32))
    stream = tl.where(row == 0, absorb(counted, zero), augmentation)
    bits = hash32(hash32(lane.to(tl.uint32) ^ stream) + (stream >> 7))
    bound = tl.where(row == 0, bound0, tl.where(row == 1, bound1, tl.where(row == 2, bound2, bound3)))
    integers = (bits.to(tl.int64) * bound) >> 32
    tl.store(out + (path * rows + row).to(tl.int64) * columns + lane, integers, mask=lane < columns)
