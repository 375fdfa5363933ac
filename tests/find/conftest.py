"""Two small networks on the digits, trained once, and a finder around them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast.correct import CorrectionResult
from llpf_fast.data import load_dataset
from llpf_fast.find import CorrectionSettings, PathFinder, Settings, StepSettings
from llpf_fast.find import finder as finder_module
from llpf_fast.find import search as path_search
from llpf_fast.flat import FlatParameters

State = dict[str, Tensor]


def network() -> nn.Module:
    hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(32, 10))


class Convolutional(nn.Sequential):
    def __init__(self) -> None:
        first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        second = [nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        super().__init__(*first, *second, nn.Flatten(), nn.Linear(32, 10))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


class Attentive(nn.Module):
    """A vision transformer of one block: rows of the image are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.attention = Attention()
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unflatten(1, (8, 8)))
        return self.head(self.norm(tokens + self.attention(tokens)).mean(1))


def train(seed: int, data: tuple[Tensor, Tensor], make: Callable[[], nn.Module] = network) -> State:
    torch.manual_seed(seed)
    module = make()
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


@pytest.fixture(scope="session")
def convolutional_ends(digits: tuple[Tensor, Tensor]) -> tuple[State, State]:
    with torch.random.fork_rng():
        return train(3, digits, Convolutional), train(4, digits, Convolutional)


@pytest.fixture(scope="session")
def rescaled(endpoints: tuple[State, State]) -> State:
    """The destination as the same function with other variances: 0.* twice as large, 3.* half, 5.weight makes up."""
    state = {name: value.clone() for name, value in endpoints[1].items()}
    for name, factor in {"0.weight": 2, "0.bias": 2, "1.running_mean": 2, "1.running_var": 4}.items():
        state[name] *= factor
    for name, factor in {"3.weight": 0.5, "3.bias": 0.5, "5.weight": 2.0}.items():
        state[name] *= factor
    return state


class Standstill:
    """In place of the correction: nothing is trained, so that values are those of the moves alone."""

    keeps_momentum = False
    momentum_buffer = None

    def __init__(self) -> None:
        self.scales: list[Tensor | None] = []

    def scale_lr(self, scale: Tensor | None) -> None:
        self.scales.append(scale)

    def run(self, first_round: int, **_: Any) -> CorrectionResult:
        return CorrectionResult(1, 0.0, True)


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Standstill:
    stub = Standstill()
    monkeypatch.setattr(finder_module, "make_correction", lambda *_: stub)
    return stub


@pytest.fixture
def never_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a search looks for arrival at its last tick, whatever the settings."""

    def never(self: Any) -> Generator[Any, Any, bool]:
        return False
        yield

    monkeypatch.setattr(path_search.PathSearch, "_rest_is_low", never)


def parameters_of(state: State, module: nn.Module | None = None) -> State:
    """Without buffers."""
    names = FlatParameters(module or network()).table.names
    return {name: state[name] for name in names}


def changed(a: State, b: State) -> set[str]:
    """Names whose bits differ."""
    return {name for name in a if not torch.equal(a[name], b[name])}


def eval_loss(state: State, data: tuple[Tensor, Tensor], module: nn.Module | None = None) -> float:
    module = module or network()
    module.load_state_dict(state)
    module.eval()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(data[0]), data[1]))


def quick(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "threshold": 0.15,
        "max_ticks": 300,
        "step": StepSettings(relative=0.05),
        "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=200, lr=0.1),
        "arrival": {"every": 5},
        "record": {"checkpoint_every": 4},
        "screening": {"samples": 500},
    }
    return Settings(**base).changed(**changes)


@pytest.fixture
def finder(digits: tuple[Tensor, Tensor], endpoints: tuple[State, State]) -> Callable[..., PathFinder]:
    def make(out: Any, *, start: State | None = None, destination: State | None = None, **options: Any) -> PathFinder:
        settings = options.pop("settings", None) or quick()
        train_data = options.pop("train", digits)
        module = options.pop("module", None) or network()
        return PathFinder(
            module,
            start or endpoints[0],
            (destination or endpoints[1]) if settings.mode == "m2m" else destination,
            settings=settings,
            train=train_data,
            out=out,
            **options,
        )

    return make
