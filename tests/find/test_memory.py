"""Memory of a search, in words a parameter: the point, the destination, the gradient, and little else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import ops
from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.find import CorrectionSettings, PathFinder, Settings
from llpf_fast.flat import FlatParameters, SegmentTable
from tests.allocations import Allocations, allocations

RULE: dict[str, Any] = {"threshold": 100.0, "window": 2, "max_steps": 3, "batch_size": 4, "lr": 1e-3}
#: Scratch, tables, batches, activations and the memory of one layer's gradient are small beside the parameters here.
SMALL = 0.05


def network() -> nn.Module:
    """Many equal layers: what autograd stores of one of them is 2 % of all."""
    return nn.Sequential(*(nn.Linear(200, 200) for _ in range(50)), nn.Linear(200, 4))


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in network().state_dict().items()}


ENDS = state(0), state(1)
BYTES = sum(value.numel() for value in ENDS[0].values()) * 4
torch.manual_seed(2)
DATA = torch.randn(32, 200), torch.randint(4, (32,))


def words(measured: Allocations) -> tuple[float, float]:
    return measured.left / BYTES, measured.peak / BYTES


def test_sgd_and_tick_take_no_words() -> None:
    table = SegmentTable.from_lengths([1 << 20])
    p, d = torch.randn(table.numel), torch.randn(table.numel)
    one, step = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 0.1], dtype=torch.float64)
    rule = {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
    where = (table.segments, table.chunks)

    def tick() -> None:
        scratch = table.scratch()
        ops.sgd_(p, d, None, one, *where)
        ops.tick_(p, d, *where, one, step, scratch=scratch, **rule)

    assert allocations(tick).peak < 0.01 * p.numel() * 4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_correction_holds_gradient_and_momentum(momentum: float) -> None:
    flat, corrections = FlatParameters(network()), list[Correction]()
    rule = {name: value for name, value in RULE.items() if name != "batch_size"}

    def run() -> None:
        batches = TensorBatches(*DATA, 4, seed=0)
        corrections.append(Correction(flat, nn.functional.cross_entropy, batches, momentum=momentum, **rule))
        corrections[0].run(0)

    left, peak = words(allocations(run))
    expected = 1 + bool(momentum)
    assert expected <= left < expected + 0.01
    assert peak < expected + SMALL


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, 0),
        ({"correction": CorrectionSettings(**RULE, momentum=0.9)}, 1),
        # The last waypoint, to go back to.
        ({"pacing": {"kind": "adaptive", "midpoint": True}}, 1),
        ({"mode": "m2o", "arrival": {"every": 100}}, -1),
    ],
    ids=["plain", "momentum", "adaptive", "origin"],
)
def test_a_search_holds_point_destination_and_gradient(tmp_path: Path, changes: dict[str, Any], more: int) -> None:
    """One word more for a moment, on the way to disk and while a point between two others is evaluated."""
    given = {"threshold": 100.0, "max_ticks": 4, "arrival": {"every": 2, "margin": 1e-9}, "screening": {"samples": 32}}
    settings = Settings(**{**given, "correction": CorrectionSettings(**RULE), **changes})
    finders = list[PathFinder]()
    given = ENDS[:1] if "mode" in changes else ENDS

    def build() -> None:
        finders.append(PathFinder(network(), *given, settings=settings, train=DATA, out=tmp_path / "run"))

    built, run = allocations(build), allocations(lambda: finders[0].run())
    expected = 3 + more
    assert expected <= words(built)[0] + words(run)[0] < expected + SMALL
    assert words(built)[0] + words(run)[1] < expected + 1 + SMALL
