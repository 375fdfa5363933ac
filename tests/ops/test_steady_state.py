"""Nothing is allocated, and no other op dispatched, once an op or the engine's part of an iteration has run before."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import ops
from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.flat import FlatParameters, SegmentTable
from llpf_fast.ops.backend import use_backend, why_not
from llpf_fast.tick import Route, Rule
from tests.allocations import Dispatched, allocations

from .examples import OPS, example

TABLE = SegmentTable.from_lengths([5000, 16, 9000, 1, 300])
P, D = torch.randn(TABLE.numel), torch.randn(TABLE.numel)


@pytest.fixture(autouse=True)
def compiled() -> None:
    if why_not("cpp", "cpu") is not None:
        pytest.skip("the CPU library is not built")


@pytest.mark.parametrize("op", OPS)
def test_an_op_allocates_its_result_and_nothing_else(op: str) -> None:
    arguments = example(op)
    results = len(getattr(torch.ops.llpf_fast, op).default._schema.returns)
    call = partial(getattr(ops, op), **arguments)
    call()
    assert allocations(call).count == results


def test_the_check_sees_what_an_op_allocates() -> None:
    with use_backend("eager"):
        call = partial(ops.tick_, **example("tick_"))
        call()
        assert allocations(call).count > 100
    assert allocations(lambda: P.clone()).peak == P.numel() * 4


def test_a_tick_is_one_op_and_so_is_a_projection() -> None:
    flat = FlatParameters(network())
    route, p = Route(flat, Rule(), torch.ones_like(flat.data), fixed=0.0, relative=0.1), flat.data
    moments = route.moments(p)
    with Dispatched() as dispatched:
        route.tick(p)
        route.project(p)
        route.project(p, moments)
    assert dispatched.names == ["tick_", "tick_", "masked_fill", "tick_"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def correction(**given: Any) -> Correction:
    torch.manual_seed(1)
    data: tuple[Tensor, Tensor] = (torch.randn(50, 20), torch.randint(3, (50,)))
    rule = {"threshold": 0.0, "window": 4, "max_steps": 4, "lr": 0.1, **given}
    flat = FlatParameters(network())
    return Correction(flat, nn.functional.cross_entropy, TensorBatches(*data, 16, seed=0), **rule)


#: The engine's ops in one iteration, beside forward, loss and backward.
ENGINE = {"fill_": 1, "counter_randint_": 1, "index_select": 2, "loss_gate_": 1, "sgd_": 1}


def test_an_iteration_dispatches_the_engines_six_ops_and_the_passes() -> None:
    """zero_ is one for all parameters; the passes' ops are counted from the same module alone."""
    ours = correction(momentum=0.9)
    ours.run(0)
    with Dispatched() as dispatched:
        ours.run(4)
    inputs, targets = ours._batches.batch(0)
    with Dispatched() as passes:
        nn.functional.cross_entropy(ours.module(inputs), targets).backward()
    surplus = {name: dispatched.names.count(name) - 4 * passes.names.count(name) for name in set(dispatched.names)}
    # Once a correction: the momentum and the active begin anew.
    once = {"zero_": 1 + 4, "copy_": 1}
    assert {name: count for name, count in surplus.items() if count} == {k: 4 * v for k, v in ENGINE.items()} | once


def test_a_replayed_iteration_adds_only_what_keeps_buffers() -> None:
    ours = correction()
    ours.replay(lambda step: step)
    ours.run(0)
    inputs, targets = ours._batches.batch(0)
    with Dispatched() as passes:
        nn.functional.cross_entropy(ours.module(inputs), targets).backward()
    with Dispatched() as dispatched:
        ours._step()
    surplus = {name: dispatched.names.count(name) - passes.names.count(name) for name in set(dispatched.names)}
    # Two dtypes of buffers: each saved by a copy and restored by a where.
    restored = {"copy_": 2, "ne": 1, "where": 2, "zero_": 1}
    engine = {name: count for name, count in ENGINE.items() if name != "fill_"}
    assert {name: count for name, count in surplus.items() if count} == engine | restored


def test_iterations_hold_no_more_than_one_of_them() -> None:
    """Every block that an iteration takes it gives back."""
    ours = correction(momentum=0.9)
    ours.run(0)
    one, many = (allocations(lambda n=n: [ours.run(0) for _ in range(n)]) for n in (1, 8))
    assert many.left == one.left == 0
    assert many.peak == one.peak
