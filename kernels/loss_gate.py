# mypy: allow-untyped-defs
"""``loss_gate_`` in Triton: one program a path."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.loss_gate import WINDOW, check_loss_gate, inspect_loss_gate

from .flags import MOST_ROUNDS
from .launch import launch


def loss_gate_triton(state: Tensor, loss: Tensor, *, threshold: float, min_rounds: int, max_rounds: int) -> None:
    """The op :func:`llpf_fast.ops.loss_gate_`, same arguments and errors."""
    check_loss_gate(state, loss, threshold, min_rounds, max_rounds)
    inspect_loss_gate(state, loss)
    launch(
        gate_kernel,
        (loss.numel(),),
        state,
        state,
        loss,
        threshold,
        max_rounds,
        MIN_ROUNDS=min_rounds,
        WIDTH=WINDOW + min_rounds,
        warps=1,
    )


@triton.jit(do_not_specialize=["max_rounds"])
def gate_kernel(
    state,
    loss,
    threshold: tl.float64,
    max_rounds,
    MIN_ROUNDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """State columns: open, last, rounds, mean, window. The window is summed in order, as the eager kernel does."""
    row = tl.program_id(0).to(tl.int64)
    state += row * WIDTH
    is_open = (tl.load(state) != 0) & (tl.load(state + 1) == 0)
    rounds = tl.load(state + 2)
    # A count that is none closes the row, and its mean becomes NaN: nothing may be written at such a place.
    counts = (rounds >= 0) & (rounds <= MOST_ROUNDS) & (tl.floor(rounds) == rounds)
    damaged = is_open & ~counts
    is_open = is_open & counts
    rounds = tl.where(counts, rounds, 0.0)
    slot = rounds.to(tl.int64) % MIN_ROUNDS
    newest = tl.load(loss + row).to(tl.float64)
    total = tl.full([], 0.0, tl.float64)
    for i in range(MIN_ROUNDS):
        total += tl.where(slot == i, newest, tl.load(state + 4 + i))
    rounds += 1
    mean = total / tl.where(rounds < MIN_ROUNDS, rounds, MIN_ROUNDS)
    last = is_open & (((rounds >= MIN_ROUNDS) & (mean <= threshold)) | (rounds >= max_rounds))
    # Every thread has read the state before one of them writes it.
    tl.debug_barrier()
    tl.store(state, is_open.to(tl.float64))
    tl.store(state + 1, last.to(tl.float64))
    tl.store(state + 2, rounds, mask=is_open)
    tl.store(state + 3, tl.where(damaged, float("nan"), mean), mask=is_open | damaged)
    tl.store(state + 4 + slot, newest, mask=is_open)
