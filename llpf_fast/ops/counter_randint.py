"""``counter_randint_``: random integers that are a function of a counter, which may lie on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .library import check, check_apart, check_row_per_path, check_same_device, define, refusal
from .loss_gate import STEPS, counts

SCHEMA = "counter_randint_(Tensor(a!) out, Tensor key, Tensor first, Tensor? state, *, int[] bounds) -> ()"

#: Rows of one call at most: the batch's indices, and what an augmentation needs.
MOST_ROWS = 4
_MASK32 = 0xFFFFFFFF


def counter_randint_(
    out: Tensor, key: Tensor, first: Tensor, state: Tensor | None = None, *, bounds: Sequence[int]
) -> None:
    """Fill row r of ``out`` with integers in [0, ``bounds[r]``), a function of (key, round, row, column) alone.

    The round is ``first`` plus the steps that ``state`` has counted, so a replayed CUDA graph goes on to the next batch
    by itself, and gets the same one again while the gate is closed. Row 0 is the stream of batches (which samples),
    rows 1.. are that of augmentation. Generator: C. Wellons' "lowbias32" over the parts of the counter (ours), the
    same bits on every device.

    Args:
        out: int64 ``[R, B]`` or ``[K, R, B]``, contiguous, overwritten; R at most 4.
        key: int64 ``[]`` (``[K]`` for K paths): :func:`llpf_fast.batches.sampling.stream_key` of seed and path.
        first: int64, shape of ``key``: the round at which the correction began.
        state: float64, the state of ``loss_gate_``, one row a path; ``None``: the round is ``first``.
        bounds: R integers, 1 to 2^31.

    Raises:
        LLPFError: a shape, dtype, device or bound that differs from the above, out that overlaps another argument; on
            the CPU also a state whose steps are no whole number of at least 0 (on a GPU they count as 0).
    """
    try:
        torch.ops.llpf_fast.counter_randint_.default(out, key, first, state, bounds=list(bounds))
    except (RuntimeError, ValueError) as error:
        raise refusal("counter_randint_", error) from None


def hash32(value: Tensor) -> Tensor:
    """A bijective scrambling of 32-bit integers stored as int64 (C. Wellons' "lowbias32" constants).

    Plain tensor arithmetic, so the same bits come out on every device, inside a CUDA graph too.
    """
    value = (value ^ (value >> 16)) * 0x7FEB352D & _MASK32
    value = (value ^ (value >> 15)) * 0x846CA68B & _MASK32
    return value ^ (value >> 16)


def _absorb(key: Tensor, part: Tensor | int) -> Tensor:
    part = torch.as_tensor(part, device=key.device)
    return hash32(key + hash32(part + 0x85EBCA6B & _MASK32) & _MASK32)


def check_counter_randint(out: Tensor, key: Tensor, first: Tensor, state: Tensor | None, bounds: Sequence[int]) -> int:
    """Number of paths."""
    op = "counter_randint_"
    check(
        out.dtype == torch.int64 and out.dim() in (2, 3) and out.is_contiguous(),
        lambda: f"{op}: out must be contiguous int64 [R, B] or [K, R, B], got {out.dtype} {list(out.shape)}",
    )
    paths = out.shape[0] if out.dim() == 3 else 1
    for name, value in (("key", key), ("first", first)):
        check(
            value.dtype == torch.int64 and value.dim() < 2 and value.numel() == paths and value.is_contiguous(),
            lambda name=name, value=value: (  # type: ignore[misc]
                f"{op}: {name} must be contiguous int64 with {paths} elements, got {value.dtype} {list(value.shape)}"
            ),
        )
        check_same_device(op, out, name, value)
    check_row_per_path(op, out, paths, "state", state)
    check(
        state is None or paths == 0 or state.numel() > STEPS * paths,
        lambda: f"{op}: state must be that of loss_gate_, got {[] if state is None else list(state.shape)}",
    )
    check(
        len(bounds) == out.shape[-2] and 1 <= len(bounds) <= MOST_ROWS,
        lambda: f"{op}: bounds must be {out.shape[-2]} integers (at most {MOST_ROWS}), got {list(bounds)}",
    )
    check(
        all(1 <= bound <= 1 << 31 for bound in bounds),
        lambda: f"{op}: bounds must lie between 1 and 2^31, got {list(bounds)}",
    )
    return paths


def inspect_counter_randint(out: Tensor, key: Tensor, first: Tensor, state: Tensor | None, paths: int) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    check_apart("counter_randint_", {"out": out}, {"key": key, "first": first, "state": state})
    if state is None or state.device.type != "cpu":
        return
    steps = _steps(state, paths)
    for k, good in enumerate(counts(steps).tolist()):
        check(
            good,
            lambda k=k: (  # type: ignore[misc]
                f"counter_randint_: state of path {k}: steps must be a whole number of at least 0, got {steps[k]:g} "
                f"in column {STEPS}"
            ),
        )


def _steps(state: Tensor, paths: int) -> Tensor:
    return state.reshape(paths, -1)[:, STEPS] if paths else state.new_empty(0)


@torch.no_grad()
def counter_randint_eager(
    out: Tensor, key: Tensor, first: Tensor, state: Tensor | None, *, bounds: Sequence[int]
) -> None:
    paths = check_counter_randint(out, key, first, state, bounds)
    inspect_counter_randint(out, key, first, state, paths)
    rows = out.reshape(paths, *out.shape[-2:])
    round_ = first.reshape(paths)
    if state is not None:
        steps = _steps(state, paths)
        round_ = round_ + torch.where(counts(steps), steps, 0.0).long()
    counted = _absorb(_absorb(key.reshape(paths), round_ & _MASK32), round_ >> 32 & _MASK32)
    columns = torch.arange(out.shape[-1], device=out.device)
    for r, bound in enumerate(bounds):
        stream = _absorb(counted, 0) if r == 0 else hash32(_absorb(counted, 1) + (r - 1) & _MASK32)
        bits = hash32(hash32(columns ^ stream[:, None]) + (stream[:, None] >> 7) & _MASK32)
        rows[:, r] = bits * bound >> 32


def counter_randint_fake(
    out: Tensor, key: Tensor, first: Tensor, state: Tensor | None, *, bounds: Sequence[int]
) -> None:
    check_counter_randint(out, key, first, state, bounds)


define(SCHEMA, counter_randint_eager, counter_randint_fake)
