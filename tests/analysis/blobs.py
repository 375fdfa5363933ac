"""Three clouds of points, small networks trained on them in a second, and a run between two of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.analysis import Networks, Problem
from llpf_fast.find import Settings
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.settings import CorrectionSettings, StepSettings


def data(count: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    targets = torch.arange(count) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    return centres[targets] + 0.6 * torch.randn(count, 2, generator=generator), targets


def module(norm: bool = False) -> nn.Module:
    middle: list[nn.Module] = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(nn.Linear(2, 12), *middle, nn.ReLU(), nn.Linear(12, 3))


def trained(seed: int, norm: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = module(norm)
    inputs, targets = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def problem(norm: bool = False, cache: Path | None = None) -> Problem:
    return Problem(module(norm), train=data(), test=data(90), cache=cache)


def networks(norm: bool = False) -> Networks:
    return Networks([trained(1, norm), trained(2, norm)], ["one", "two"], module(norm))


def llpf_settings() -> Settings:
    return Settings(
        threshold=0.1,
        max_ticks=200,
        step=StepSettings(relative=0.05),
        correction=CorrectionSettings(threshold=0.05, window=2, max_steps=50, batch_size=32, lr=0.1),
        screening={"samples": 0},
        arrival={"every": 1},
    )


def write_path(folder: Path, states: list[dict[str, Tensor]], **settings: object) -> Path:
    """A finished run of these waypoints."""
    digests = {"start_sha256": state_digest(states[0]), "destination_sha256": state_digest(states[-1])}
    run = RunDirectory.create(folder, {"settings": {"mode": "m2m", "threshold": 0.3, **settings}, **digests})
    for tick, state in enumerate(states):
        run.add_waypoint(tick, state)
    run.finish(arrived=True)
    return folder
