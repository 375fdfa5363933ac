"""counter_randint_: the integers of a batch against the generator in plain Python; a closed gate does not count on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llpf_fast import ops
from llpf_fast.batches.sampling import hash32_int, round_key, stream_key

from .examples import Arguments

pytestmark = pytest.mark.usefixtures("backend")

#: The words are 32 bits wide and bounds multiply them: the largest of each must not overflow.
BOUNDS = st.lists(st.one_of(st.integers(1, 100_000), st.just(1 << 31)), min_size=1, max_size=4)


def examples() -> list[Arguments]:
    full = {"out": torch.zeros(2, 5, dtype=torch.int64), "key": torch.tensor(7), "first": torch.tensor(3)}
    full |= {"state": ops.gate_state(3), "bounds": [100, 9]}
    paths = {"out": torch.zeros(3, 2, 5, dtype=torch.int64), "key": torch.arange(3), "first": torch.arange(3)}
    return [full, full | {"state": None}, full | paths | {"state": ops.gate_state(3, 3)}]


def plain(seed: int, path: int, round_: int, row: int, column: int, bound: int) -> int:
    key = round_key(seed, path, round_, 0) if row == 0 else hash32_int(round_key(seed, path, round_, 1) + row - 1)
    bits = hash32_int(hash32_int(column ^ key) + (key >> 7))
    return bits * bound >> 32


@given(
    seed=st.integers(0, 1 << 40),
    path=st.integers(0, 300),
    first=st.one_of(st.integers(0, 5), st.integers((1 << 32) - 3, (1 << 32) + 3), st.integers(1 << 40, 1 << 50)),
    counted=st.integers(0, 1000),
    bounds=BOUNDS,
    columns=st.integers(1, 20),
)
def test_equals_plain_integers(seed: int, path: int, first: int, counted: int, bounds: list[int], columns: int) -> None:
    out = torch.full((len(bounds), columns), -1)
    state = ops.gate_state(2)
    state[2] = counted
    key = torch.tensor(stream_key(seed, path))
    for counter, round_ in ((None, first), (state, first + counted)):
        ops.counter_randint_(out, key, torch.tensor(first), counter, bounds=bounds)
        want = [[plain(seed, path, round_, r, i, b) for i in range(columns)] for r, b in enumerate(bounds)]
        assert out.tolist() == want


def test_rows_of_many_paths_are_those_of_each() -> None:
    keys, first, state = (
        torch.tensor([stream_key(4, k) for k in range(3)]),
        torch.tensor([0, 9, 70]),
        ops.gate_state(2, 3),
    )
    state[:, 2] = torch.tensor([5.0, 0.0, 2.0])
    stacked = torch.zeros(3, 2, 7, dtype=torch.int64)
    ops.counter_randint_(stacked, keys, first, state, bounds=[50, 1 << 20])
    for k in range(3):
        alone = torch.zeros(2, 7, dtype=torch.int64)
        ops.counter_randint_(alone, keys[k], first[k], state[k], bounds=[50, 1 << 20])
        assert torch.equal(stacked[k], alone)


def test_a_closed_gate_draws_the_same_batch_again() -> None:
    key, first, state, out = (
        torch.tensor(stream_key(1, 0)),
        torch.tensor(12),
        ops.gate_state(1),
        torch.zeros(1, 64).long(),
    )
    drawn = []
    for _ in range(4):
        ops.counter_randint_(out, key, first, state, bounds=[1000])
        drawn.append(out.clone())
        ops.loss_gate_(state, torch.tensor(1.0), threshold=0.0, window=1, max_steps=2)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    assert torch.equal(drawn[2], drawn[3])
