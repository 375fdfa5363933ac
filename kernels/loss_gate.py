# mypy: allow-untyped-defs
"""``loss_gate_`` in Triton: one program a path."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.ops.loss_gate import WINDOW, check_loss_gate, inspect_loss_gate

from .constants import MOST_STEPS
from .launch import launch


def loss_gate_triton(state: Tensor, loss: Tensor, *, threshold: float, window: int, max_steps: int) -> None:
    """The op :func:`llpf_fast.ops.loss_gate_`, same arguments and errors."""
    check_loss_gate(state, loss, threshold, window, max_steps)
    inspect_loss_gate(state, loss)
    launch(
        loss_gate_kernel,
        (loss.numel(),),
        state,
        state,
        loss,
        threshold,
        max_steps,
        LOSSES=window,
        WIDTH=WINDOW + window,
        warps=1,
    )


@triton.jit(do_not_specialize=["max_steps"])
def loss_gate_kernel(
    state,
    loss,
    threshold: tl.float64,
    max_steps,
    LOSSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """State columns: active, final, steps, mean, LOSSES losses, which are summed in order, as the eager kernel does."""
    row = tl.program_id(0).to(tl.int64)
    state += row * WIDTH
    active = (tl.load(state) != 0) & (tl.load(state + 1) == 0)
    steps = tl.load(state + 2)
    # A number of steps that is none closes the row, and its mean becomes NaN: it would be used as an index.
    counts = (steps >= 0) & (steps <= MOST_STEPS) & (tl.floor(steps) == steps)
    damaged = active & ~counts
    active = active & counts
    steps = tl.where(counts, steps, 0.0)
    slot = steps.to(tl.int64) % LOSSES
    newest = tl.load(loss + row).to(tl.float64)
    total = tl.full([], 0.0, tl.float64)
    for i in range(LOSSES):
        total += tl.where(slot == i, newest, tl.load(state + 4 + i))
    steps += 1
    mean = total / tl.where(steps < LOSSES, steps, LOSSES)
    final = active & (((steps >= LOSSES) & (mean <= threshold)) | (steps >= max_steps))
    # Every thread has read the state before one of them writes it.
    tl.debug_barrier()
    tl.store(state, active.to(tl.float64))
    tl.store(state + 1, final.to(tl.float64))
    tl.store(state + 2, steps, mask=active)
    tl.store(state + 3, tl.where(damaged, float("nan"), mean), mask=active | damaged)
    tl.store(state + 4 + slot, newest, mask=active)
