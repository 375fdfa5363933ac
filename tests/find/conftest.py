"""Two small networks on the digits, trained once, and a finder around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast.data import load_dataset
from llpf_fast.find import CorrectionSettings, PathFinder, Settings, StepSettings

State = dict[str, Tensor]


def network() -> nn.Module:
    hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(32, 10))


def train(seed: int, data: tuple[Tensor, Tensor]) -> State:
    torch.manual_seed(seed)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    x, y = data
    for _ in range(15):
        order = torch.randperm(len(x))
        for index in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits")
    return data.train_inputs.flatten(1), data.train_targets


@pytest.fixture(scope="session")
def endpoints(digits: tuple[Tensor, Tensor]) -> tuple[State, State]:
    with torch.random.fork_rng():
        return train(1, digits), train(2, digits)


def quick(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "threshold": 0.15,
        "max_ticks": 300,
        "step": StepSettings(relative=0.05),
        "correction": CorrectionSettings(threshold=0.05, min_rounds=5, max_rounds=200, lr=0.1),
        "arrival_every": 5,
        "checkpoint_every": 4,
        "screen_size": 500,
    }
    return Settings(**{**base, **changes})


@pytest.fixture
def finder(digits: tuple[Tensor, Tensor], endpoints: tuple[State, State]) -> Callable[..., PathFinder]:
    def make(out: Any, *, start: State | None = None, destination: State | None = None, **options: Any) -> PathFinder:
        settings = options.pop("settings", None) or quick()
        train_data = options.pop("train", digits)
        module = options.pop("module", None) or network()
        return PathFinder(
            module,
            start or endpoints[0],
            destination or endpoints[1],
            settings=settings,
            train=train_data,
            out=out,
            **options,
        )

    return make
