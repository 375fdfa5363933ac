"""The GPU checks can fail: tested without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captured_checks
import gpu_checks
import pytest
import torch
from torch import Tensor, nn

from llpf_fast import ops
from llpf_fast.correct import Correction

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["moments", "affine", "loss_gate", "counter_randint", "relu_pool_bounds", "rows"])
def test_checks_pass_on_the_cpu(name: str) -> None:
    gpu_checks.run_check(name, "auto", CPU)


@pytest.mark.parametrize(
    "name", ["graph", "launches", "no_allocation", "no_synchronisation", "streams", "steady_replays", "closed_gate"]
)
def test_checks_of_the_device_say_that_they_need_one(name: str) -> None:
    with pytest.raises(gpu_checks.NotHere):
        gpu_checks.run_check(name, "auto", CPU)


def test_a_wrong_affine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.affine_

    def wrong(p: Tensor, *others: Tensor) -> None:
        right(p, *others)
        p.reshape(-1)[-1] += 1e-3

    monkeypatch.setattr(ops, "affine_", wrong)
    with pytest.raises(AssertionError, match="affine_ of unaligned"):
        gpu_checks.run_check("affine", "auto", CPU)


def test_wrong_moments_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.moments
    monkeypatch.setattr(ops, "moments", lambda *given: right(*given) * (1 + 1e-9))
    with pytest.raises(AssertionError, match="moments of padded"):
        gpu_checks.run_check("moments", "auto", CPU)


@pytest.fixture
def called_instead_of_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of captured corrections on the CPU, with the iteration itself in place of a graph of it."""
    build = captured_checks.correction

    def called(
        make: Callable[[], nn.Module], device: torch.device, cuda_graph: str = "auto", **given: Any
    ) -> Correction:
        one = build(make, device, **given)
        if cuda_graph == "on":
            one.replay(lambda step: step)
        return one

    monkeypatch.setattr(captured_checks, "correction", called)


@pytest.mark.usefixtures("called_instead_of_captured")
def test_the_checks_of_captured_corrections_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_checks.check_captured_values(CPU)
    captured_checks.check_closed_gate(CPU)
    monkeypatch.setattr("llpf_fast.correct.snapshots.BufferSnapshot.restore", lambda *_: None)
    with pytest.raises(AssertionError, match="replays after the gate closed"):
        captured_checks.check_closed_gate(CPU)
