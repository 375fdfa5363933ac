"""``loss_gate_``: decides on the device whether the correction goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .library import check, check_apart, check_float64, check_same_device, define, refusal

SCHEMA = "loss_gate_(Tensor(a!) state, Tensor loss, *, float threshold, int window, int max_steps) -> ()"

ACTIVE, FINAL, STEPS, MEAN, WINDOW = 0, 1, 2, 3, 4
#: What float64 counts to without a gap.
MOST_STEPS = 2.0**53


def gate_state(window: int, paths: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """A state at the beginning of a correction: float64 ``[4 + window]``, or ``[paths, 4 + window]``."""
    shape = (WINDOW + window,) if paths is None else (paths, WINDOW + window)
    state = torch.zeros(shape, dtype=torch.float64, device=device)
    state[..., ACTIVE] = 1.0
    return state


def loss_gate_(state: Tensor, loss: Tensor, *, threshold: float, window: int, max_steps: int) -> None:
    """Take one batch loss into account, before its own backward pass (rule: LLPF, arXiv 2505.02604).

    Columns of ``state``: 0 ``active`` (this step's update counts), 1 ``final`` (it is the correction's last), 2 steps
    so far, 3 mean of the losses in the window, then the last ``window`` losses. ``active`` was decided by the losses
    before this one, so the batch that meets the threshold still trains. The correction closes when the window is full
    and its mean is at most ``threshold``, or after ``max_steps``. A closed state keeps every bit except that ``active``
    and ``final`` become 0. A loss that is not finite shows in the mean and never meets the threshold.

    Args:
        state: float64 ``[4 + window]`` or ``[K, 4 + window]``, from :func:`gate_state`.
        loss: floating point, 0-d or ``[1]`` (``[K]`` for K paths).
        threshold: loss at or below which the correction ends.
        window: losses that the mean is taken of, at least 1.
        max_steps: at least ``window``.

    Raises:
        LLPFError: a shape, dtype or device that differs from the above, a loss that overlaps the state; on the CPU also
            a state that no sequence of losses leads to. On a GPU, where a check would wait for the device, such a row
            closes and its mean becomes NaN.
    """
    try:
        torch.ops.llpf_fast.loss_gate_.default(state, loss, threshold=threshold, window=window, max_steps=max_steps)
    except (RuntimeError, ValueError) as error:
        raise refusal("loss_gate_", error) from None


def counts(steps: Tensor) -> Tensor:
    """Which numbers of steps can be counted with: whole numbers from 0 to 2^53."""
    return (steps >= 0) & (steps <= MOST_STEPS) & (steps.floor() == steps)


def check_loss_gate(state: Tensor, loss: Tensor, threshold: float, window: int, max_steps: int) -> None:
    check(
        1 <= window <= max_steps,
        lambda: f"loss_gate_: needs 1 <= window <= max_steps, got {window} and {max_steps}",
    )
    check(not math.isnan(threshold), lambda: f"loss_gate_: threshold must be a number, got {threshold:g}")
    width = WINDOW + window
    paths = state.shape[0] if state.dim() == 2 else 1
    check_float64("loss_gate_", state, "state", state, ((width,), (paths, width)))
    check(
        loss.is_floating_point() and loss.numel() == paths and loss.is_contiguous(),
        lambda: (
            f"loss_gate_: loss must be floating point, contiguous, with {paths} elements, got {loss.dtype} "
            f"{list(loss.shape)}"
        ),
    )
    check_same_device("loss_gate_", state, "loss", loss)


def inspect_loss_gate(state: Tensor, loss: Tensor) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    check_apart("loss_gate_", {"state": state}, {"loss": loss})
    if state.device.type != "cpu":
        return
    for k, row in enumerate(state.reshape(-1, state.shape[-1])[:, :MEAN].tolist()):
        for column in (ACTIVE, FINAL):
            _check_column(k, column, row[column] in (0, 1), "active and final must be 0 or 1", row[column])
        counted = 0 <= row[STEPS] <= MOST_STEPS and row[STEPS] == int(row[STEPS])
        _check_column(k, STEPS, counted or row[ACTIVE] == 0, "steps must be a whole number of at least 0", row[STEPS])


def _check_column(path: int, column: int, good: bool, rule: str, value: float) -> None:
    check(good, lambda: f"loss_gate_: state of path {path}: {rule}, got {value:g} in column {column}")


@torch.no_grad()
def loss_gate_eager(state: Tensor, loss: Tensor, *, threshold: float, window: int, max_steps: int) -> None:
    check_loss_gate(state, loss, threshold, window, max_steps)
    inspect_loss_gate(state, loss)
    rows = state.reshape(-1, state.shape[-1])
    active = (rows[:, ACTIVE] != 0) & (rows[:, FINAL] == 0)
    steps = rows[:, STEPS]
    damaged = active & ~counts(steps)
    active = active & ~damaged
    slot = torch.arange(window, device=state.device) == (steps % window)[:, None]
    losses = torch.where(slot, loss.reshape(-1, 1).double(), rows[:, WINDOW:])
    steps = steps + 1
    total = torch.zeros_like(steps)
    for i in range(window):
        total = total + losses[:, i]
    mean = total / steps.clamp(max=window)
    final = (steps >= window) & (mean <= threshold) | (steps >= max_steps)
    updated = torch.cat([torch.stack([steps, mean], 1), losses], 1)
    rows[:, STEPS:] = torch.where(active[:, None], updated, rows[:, STEPS:])
    rows[:, MEAN] = torch.where(damaged, torch.nan, rows[:, MEAN])
    rows[:, FINAL] = (active & final).double()
    rows[:, ACTIVE] = active.double()


def loss_gate_fake(state: Tensor, loss: Tensor, *, threshold: float, window: int, max_steps: int) -> None:
    check_loss_gate(state, loss, threshold, window, max_steps)


define(SCHEMA, loss_gate_eager, loss_gate_fake)
