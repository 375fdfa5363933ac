"""``loss_gate_``: decides on the device whether the correction goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .library import check, check_apart, check_float64, check_same_device, define, refusal

SCHEMA = "loss_gate_(Tensor(a!) state, Tensor loss, *, float threshold, int min_rounds, int max_rounds) -> ()"

OPEN, LAST, ROUNDS, MEAN, WINDOW = 0, 1, 2, 3, 4
#: What float64 counts to without a gap.
MOST_ROUNDS = 2.0**53


def gate_state(min_rounds: int, paths: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """A fresh, open state: float64 ``[4 + min_rounds]``, or ``[paths, 4 + min_rounds]``."""
    shape = (WINDOW + min_rounds,) if paths is None else (paths, WINDOW + min_rounds)
    state = torch.zeros(shape, dtype=torch.float64, device=device)
    state[..., OPEN] = 1.0
    return state


def loss_gate_(state: Tensor, loss: Tensor, *, threshold: float, min_rounds: int, max_rounds: int) -> None:
    """Take one batch loss into account, before its own backward pass (DESIGN section 5; rule: LLPF).

    Columns of ``state``: 0 ``open`` (this iteration's update counts), 1 ``last`` (and it closes the correction),
    2 rounds so far, 3 mean of the losses in the window, then the window of the last ``min_rounds`` losses.
    ``open`` was decided by the losses before this one, so the batch that meets the threshold still trains. The
    correction closes when the window is full and its mean is at most ``threshold``, or after ``max_rounds``.
    A closed state keeps every bit except that ``open`` and ``last`` become 0. A loss that is not finite shows in
    the mean and never meets the threshold.

    Args:
        state: float64 ``[4 + min_rounds]`` or ``[K, 4 + min_rounds]``, from :func:`gate_state`.
        loss: floating point, 0-d or ``[1]`` (``[K]`` for K paths).
        threshold: loss at or below which the correction ends.
        min_rounds: size of the window, at least 1.
        max_rounds: at least ``min_rounds``.

    Raises:
        LLPFError: a shape, dtype or device that differs from the above, a loss that overlaps the state; on the CPU also
            a state that no sequence of losses leads to. On a GPU, where looking would wait, such a row closes and its
            mean becomes NaN: nothing is ever written beside the state.
    """
    try:
        torch.ops.llpf_fast.loss_gate_.default(
            state, loss, threshold=threshold, min_rounds=min_rounds, max_rounds=max_rounds
        )
    except RuntimeError as error:
        raise refusal("loss_gate_", error) from None


def counts(rounds: Tensor) -> Tensor:
    """Which numbers of rounds can be counted with: whole numbers from 0 to 2^53."""
    return (rounds >= 0) & (rounds <= MOST_ROUNDS) & (rounds.floor() == rounds)


def check_loss_gate(state: Tensor, loss: Tensor, threshold: float, min_rounds: int, max_rounds: int) -> None:
    check(
        1 <= min_rounds <= max_rounds,
        lambda: f"loss_gate_: needs 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}",
    )
    check(not math.isnan(threshold), lambda: f"loss_gate_: threshold must be a number, got {threshold:g}")
    width = WINDOW + min_rounds
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
    """What only tensors with memory can be asked."""
    check_apart("loss_gate_", {"state": state}, {"loss": loss})
    if state.device.type != "cpu":
        return
    for k, row in enumerate(state.reshape(-1, state.shape[-1])[:, :MEAN].tolist()):
        for column in (OPEN, LAST):
            _check_column(k, column, row[column] in (0, 1), "open and last must be 0 or 1", row[column])
        counted = 0 <= row[ROUNDS] <= MOST_ROUNDS and row[ROUNDS] == int(row[ROUNDS])
        _check_column(k, ROUNDS, counted or row[OPEN] == 0, "rounds must be a whole number of at least 0", row[ROUNDS])


def _check_column(path: int, column: int, good: bool, rule: str, value: float) -> None:
    check(good, lambda: f"loss_gate_: state of path {path}: {rule}, got {value:g} in column {column}")


@torch.no_grad()
def loss_gate_eager(state: Tensor, loss: Tensor, *, threshold: float, min_rounds: int, max_rounds: int) -> None:
    check_loss_gate(state, loss, threshold, min_rounds, max_rounds)
    inspect_loss_gate(state, loss)
    rows = state.reshape(-1, state.shape[-1])
    is_open = (rows[:, OPEN] != 0) & (rows[:, LAST] == 0)
    rounds = rows[:, ROUNDS]
    damaged = is_open & ~counts(rounds)
    is_open = is_open & ~damaged
    slot = torch.arange(min_rounds, device=state.device) == (rounds % min_rounds)[:, None]
    window = torch.where(slot, loss.reshape(-1, 1).double(), rows[:, WINDOW:])
    rounds = rounds + 1
    total = torch.zeros_like(rounds)
    for i in range(min_rounds):
        total = total + window[:, i]
    mean = total / rounds.clamp(max=min_rounds)
    last = (rounds >= min_rounds) & (mean <= threshold) | (rounds >= max_rounds)
    fresh = torch.cat([torch.stack([rounds, mean], 1), window], 1)
    rows[:, ROUNDS:] = torch.where(is_open[:, None], fresh, rows[:, ROUNDS:])
    rows[:, MEAN] = torch.where(damaged, torch.nan, rows[:, MEAN])
    rows[:, LAST] = (is_open & last).double()
    rows[:, OPEN] = is_open.double()


def loss_gate_fake(state: Tensor, loss: Tensor, *, threshold: float, min_rounds: int, max_rounds: int) -> None:
    check_loss_gate(state, loss, threshold, min_rounds, max_rounds)


define(SCHEMA, loss_gate_eager, loss_gate_fake)
