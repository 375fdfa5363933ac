"""Many paths at once on a GPU: the captured iteration is the one that is called, and each row is its path alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.correct.stacked import StackedCorrection
from llpf_fast.flat import FlatParameters

RULE: dict[str, Any] = {"threshold": 0.0, "min_rounds": 5, "max_rounds": 13, "lr": 0.02, "momentum": 0.5}
PATHS = 6


def _network() -> nn.Module:
    first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(4 * 36, 10))


def _batches(device: torch.device) -> TensorBatches:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 1, 8, 8, generator=generator).to(device)
    return TensorBatches(inputs, torch.arange(300, device=device) % 10, 64, seed=1)


def _trained(capture: str, block: int) -> list[dict[str, torch.Tensor]]:
    device = torch.device("cuda")
    torch.manual_seed(0)
    flats = [FlatParameters(_network().to(device)) for _ in range(PATHS)]
    loss = nn.functional.cross_entropy
    stacked = StackedCorrection(
        flats[0],
        loss,
        _batches(device),
        paths=8,
        block=block,
        capture=capture,
        **RULE,  # type: ignore[arg-type]
    )
    for i, path in enumerate([stacked.take(flat) for flat in flats]):
        path.begin(3 * i)
    ended = 0
    while ended < PATHS:
        ended += len(stacked.iterate())
    return [{name: value.cpu() for name, value in flat.state_dict().items()} for flat in flats]


@pytest.mark.gpu
def test_replays_are_the_calls_bit_for_bit() -> None:
    called = _trained("off", 1)
    for block in (1, 4):
        replayed = _trained("on", block)
        for one, other in zip(called, replayed, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
def test_each_row_is_its_path_alone() -> None:
    device = torch.device("cuda")
    rows = _trained("on", 4)
    torch.manual_seed(0)
    for i, row in enumerate(rows):
        flat = FlatParameters(_network().to(device))
        Correction(flat, nn.functional.cross_entropy, _batches(device), **RULE).run(3 * i)
        for name, value in flat.state_dict().items():
            torch.testing.assert_close(row[name], value.cpu(), rtol=1e-3, atol=1e-4)
