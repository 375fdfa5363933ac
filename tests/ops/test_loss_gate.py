"""loss_gate_: the correction's rule, against a list of losses in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llpf_fast import ops
from llpf_fast.errors import LLPFError

from .comparison import same_bits
from .examples import Arguments
from .oracle import Gate

pytestmark = pytest.mark.usefixtures("backend")

#: Multiples of 1/64: their sums are exact, so that the threshold can be met to the bit.
LOSSES = st.one_of(st.integers(0, 192).map(lambda i: i / 64), st.sampled_from([math.nan, math.inf, -math.inf]))


def examples() -> list[Arguments]:
    full = {"state": ops.gate_state(3), "loss": torch.tensor(1.0), "threshold": 0.1, "window": 3, "max_steps": 9}
    return [full, full | {"state": ops.gate_state(3, 2), "loss": torch.ones(2).bfloat16()}]


def feed(state: Tensor, loss: float | list[float], dtype: torch.dtype = torch.float32, **rule: float) -> None:
    ops.loss_gate_(state, torch.tensor(loss, dtype=dtype), **rule)


@given(
    columns=st.integers(1, 3).flatmap(
        lambda k: st.lists(st.lists(LOSSES, min_size=k, max_size=k), min_size=1, max_size=14)
    ),
    threshold=st.integers(0, 128).map(lambda i: i / 64),
    window=st.integers(1, 5),
    extra=st.integers(0, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equals_the_list(
    columns: list[list[float]], threshold: float, window: int, extra: int, dtype: torch.dtype
) -> None:
    """Every column of the state after every loss, for one path and for several at once."""
    paths, max_steps = len(columns[0]), window + extra
    state = ops.gate_state(window, paths)
    models = [Gate(threshold, window, max_steps, []) for _ in range(paths)]
    for losses in columns:
        batch = torch.tensor(losses, dtype=dtype)
        before = state.clone()
        ops.loss_gate_(state, batch, threshold=threshold, window=window, max_steps=max_steps)
        for k, model in enumerate(models):
            counts = model.take(float(batch[k]))
            row = state[k]
            assert row[0].item() == float(counts)
            assert row[1].item() == float(counts and model.closing)
            if not counts:
                assert same_bits(row[2:], before[k, 2:])
                continue
            assert row[2].item() == len(model.losses)
            recent = model.losses[-window:]
            mean = sum(recent) / len(recent)
            assert row[3].item() == pytest.approx(mean, rel=1e-15, nan_ok=True)
            if len(recent) == window and not math.isnan(mean):
                assert sorted(row[4:].tolist()) == sorted(recent)


@given(losses=st.lists(LOSSES, min_size=1, max_size=8), window=st.integers(1, 3))
def test_a_path_of_many_is_a_path_alone(losses: list[float], window: int) -> None:
    rule = {"threshold": 1.0, "window": window, "max_steps": 5}
    many, alone = ops.gate_state(window, 2), ops.gate_state(window)
    for loss in losses:
        feed(many, [0.5, loss], **rule)
        feed(alone, loss, **rule)
        assert same_bits(many[1], alone)


def test_the_batch_that_meets_the_threshold_still_trains() -> None:
    rule = {"threshold": 0.5, "window": 2, "max_steps": 100}
    state = ops.gate_state(2)
    states = []
    for loss in (0.9, 0.25, 0.75, 0.1, 9.0):
        feed(state, loss, **rule)
        states.append(state[:3].tolist())
    assert states == [[1, 0, 1], [1, 0, 2], [1, 1, 3], [0, 0, 3], [0, 0, 3]]
    assert state[3].item() == 0.5


def test_at_least_min_rounds_at_most_max_rounds() -> None:
    rule = {"threshold": 0.5, "window": 3, "max_steps": 4}
    low, high = ops.gate_state(3), ops.gate_state(3)
    opened = []
    for _ in range(6):
        feed(low, 0.0, **rule)
        feed(high, 7.0, **rule)
        opened.append((low[:2].tolist(), high[:2].tolist()))
    assert [a for a, _ in opened] == [[1, 0], [1, 0], [1, 1], [0, 0], [0, 0], [0, 0]]
    assert [b for _, b in opened] == [[1, 0], [1, 0], [1, 0], [1, 1], [0, 0], [0, 0]]


def test_nan_never_meets_the_threshold_and_shows() -> None:
    rule = {"threshold": 1e300, "window": 2, "max_steps": 5}
    state = ops.gate_state(2)
    feed(state, 0.0, **rule)
    for rounds in (2, 3):
        feed(state, math.nan, **rule)
        assert state[:3].tolist() == [1, 0, rounds]
        assert math.isnan(state[3].item())
    feed(state, 1.0, **rule)
    assert state[:2].tolist() == [1, 0]
    feed(state, 1.0, **rule)
    assert state[:4].tolist() == [1, 1, 5, 1.0]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shapes_and_types_of_the_loss(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    state = ops.gate_state(1)
    ops.loss_gate_(state, torch.full(shape, 0.625, dtype=dtype), threshold=1.0, window=1, max_steps=1)
    assert state.tolist() == [1, 1, 1, 0.625, 0.625]
    row = ops.gate_state(1, 1)
    ops.loss_gate_(row, torch.full((1,), 0.625, dtype=dtype), threshold=1.0, window=1, max_steps=1)
    assert row.tolist() == [state.tolist()]


def test_the_loss_may_require_a_gradient() -> None:
    """The training loop hands in the loss before its backward pass."""
    weight = torch.ones((), requires_grad=True)
    loss = weight * 0.5
    state = ops.gate_state(1)
    ops.loss_gate_(state, loss, threshold=1.0, window=1, max_steps=1)
    loss.backward()
    assert weight.grad is not None
    assert not state.requires_grad
    assert state[1].item() == 1.0


RULE = {"threshold": 0.1, "window": 3, "max_steps": 9}


@pytest.mark.parametrize("steps", [math.nan, math.inf, -math.inf, -1.0, 0.5, 2.0**54, -1e300, 1e300])
@pytest.mark.parametrize("paths", [None, 3])
def test_a_number_of_steps_that_is_none(steps: float, paths: int | None) -> None:
    """It would say where in memory the loss is written."""
    state = ops.gate_state(3, paths)
    state.reshape(-1, 7)[-1, 2] = steps
    before, loss = state.clone(), torch.full((paths or 1,), 0.5)
    says = f"loss_gate_: state of path {(paths or 1) - 1}: steps must be a whole number of at least 0, got"
    with pytest.raises(LLPFError, match=says) as caught:
        ops.loss_gate_(state, loss, **RULE)
    assert f"{steps:g} in column 2" in str(caught.value)
    assert same_bits(state, before)
    drawn = torch.zeros(*(() if paths is None else (paths,)), 1, 4, dtype=torch.int64)
    key = torch.zeros(() if paths is None else paths, dtype=torch.int64)
    with pytest.raises(
        LLPFError, match=r"counter_randint_: state of path .: steps must be a whole number of at least 0, got"
    ):
        ops.counter_randint_(drawn, key, key.clone(), state, bounds=[9])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [math.nan, -1.0, 0.5, math.inf])
def test_active_and_final_are_0_or_1(column: int, value: float) -> None:
    state = ops.gate_state(3)
    state[column] = value
    with pytest.raises(LLPFError, match=f"path 0: active and final must be 0 or 1, got {value:g} in column {column}"):
        ops.loss_gate_(state, torch.tensor(0.5), **RULE)


def test_a_closed_row_keeps_whatever_it_counted() -> None:
    state = ops.gate_state(3)
    state[0], state[2] = 0.0, math.nan
    before = state.clone()
    ops.loss_gate_(state, torch.tensor(0.5), **RULE)
    assert same_bits(state, before)


def test_a_threshold_that_is_no_number() -> None:
    with pytest.raises(LLPFError, match="loss_gate_: threshold must be a number, got nan"):
        ops.loss_gate_(ops.gate_state(3), torch.tensor(0.5), **(RULE | {"threshold": math.nan}))


def test_a_window_of_another_size() -> None:
    with pytest.raises(LLPFError, match=r"loss_gate_: state must be float64 of shape \[7\].*got .*float64 \[6\]"):
        ops.loss_gate_(ops.gate_state(2), torch.tensor(0.5), **RULE)
