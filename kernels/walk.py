# mypy: allow-untyped-defs
"""Device helpers of the streaming kernels: one program walks one chunk of one path."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunk_of_program(segments, chunks):
    """Path, segment, start, length and flags. All int64: a batch of large models has more than 2^31 elements."""
    row = tl.program_id(1).to(tl.int64)
    chunk = chunks + 3 * tl.program_id(0).to(tl.int64)
    segment = tl.load(chunk)
    return row, segment, tl.load(chunk + 1), tl.load(chunk + 2), tl.load(segments + 5 * segment + 4)


@triton.jit
def is_whole(start, left, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Whether a tile may be loaded 16 bytes at a time.

    Triton vectorises where it can prove 16-byte alignment and where the mask is constant over each vector. A table on
    the device can prove neither without a host synchronisation, so every program checks its chunk: full tiles at
    aligned starts (all but one tile of a tensor) go unmasked, the ragged rest loads single elements.
    """
    return ALIGNED & (start % 16 == 0) & (left >= BLOCK)


@triton.jit
def tile_at(buffer, at, VECTOR: tl.constexpr):
    """Pointer to a tile; VECTOR is 1 on the ragged way.

    Rounding down to VECTOR changes nothing where ``is_whole`` is true; it is the proof of alignment.
    ``tl.multiple_of`` would mark the sum itself, which the ragged way shares, and gets lost when sums are rearranged.
    """
    if VECTOR > 1:
        at = at // VECTOR * VECTOR
    return buffer + at


@triton.jit
def tile_mask(wanted, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Which elements of a tile to touch where a scalar condition holds.

    The same for the whole tile on the vectorised way, so loads and stores stay vectorised and cost no traffic where
    it is false. By way of an integer, because the interpreter cannot spread a condition over a tile.
    """
    mask = tl.full([BLOCK], wanted.to(tl.int32), tl.int32) != 0
    if VECTOR == 1:
        mask = mask & (tl.arange(0, BLOCK) < left)
    return mask


@triton.jit
def load_tile(tile, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    values = tl.load(tile + lane) if VECTOR > 1 else tl.load(tile + lane, mask=lane < left, other=0.0)
    return values


@triton.jit
def store_tile(tile, values, left, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    if VECTOR > 1:
        tl.store(tile + lane, values)
    else:
        tl.store(tile + lane, values, mask=lane < left)
