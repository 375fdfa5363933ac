"""Small states like those of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llpf_fast.path import RunDirectory, state_digest

State = dict[str, Tensor]


def make_state(seed: int) -> State:
    random = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(3, 2, 5, 5, generator=random),
        "conv.bias": torch.randn(3, generator=random),
        "norm.running_mean": torch.randn(3, generator=random),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


@pytest.fixture(name="make_state")
def make_state_fixture() -> Callable[[int], State]:
    return make_state


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a complete run of five waypoints that arrived."""
    states = [make_state(seed) for seed in range(5)]
    record = {"start_sha256": state_digest(states[0]), "destination_sha256": state_digest(states[-1])}
    run = RunDirectory.create(tmp_path / "run", record)
    for tick, state in enumerate(states):
        run.add_waypoint(10 * tick, state, loss=0.1 * tick)
        run.append_metrics({"tick": tick, "loss": 0.1 * tick})
    run.finish(seconds=1.5)
    return run.folder
