"""Frozen parameters through a whole search: never moved, never counted, never different without a word."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llpf_fast
from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, LayerSettings, Settings, StepSettings
from llpf_fast.modes import MODES
from llpf_fast.path import LowLossPath


class Frozen(nn.Module):
    """A base that does not train (its bias does), as in fine-tuning, below a head that does."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.norm, self.head = nn.Linear(10, 16), nn.LayerNorm(16), nn.Linear(16, 2)
        self.base.weight.requires_grad_(False)
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.base(x)).relu())


FROZEN = ("base.weight", "norm.weight")


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=generator)
    return x, (x[:, 0] > 0).long()


def networks() -> tuple[Frozen, Frozen]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start, end = Frozen(), Frozen()
        with torch.no_grad():
            for name, parameter in (*start.named_parameters(), *end.named_parameters()):
                if name not in FROZEN:
                    parameter += 0.1 * torch.randn_like(parameter)
        end.base.weight.data.copy_(start.base.weight)
    return start, end


def search(data: Any, folder: Path, mode: str, start: nn.Module, end: nn.Module | None, **changes: Any) -> LowLossPath:
    step = changes.pop("step", StepSettings(relative=0.3))
    correction = CorrectionSettings(threshold=4.0, max_steps=20, lr=0.01)
    settings = Settings(mode=mode, threshold=5.0, max_ticks=12, step=step, correction=correction, **changes)  # type: ignore[arg-type]
    try:
        return llpf_fast.find_path(
            Frozen(),
            start,
            end if mode == "m2m" or "sphere" in mode else None,
            data=data,
            settings=settings,
            out=folder,
        )
    except LLPFError as error:
        if "did not arrive" not in str(error):
            raise
    return llpf_fast.open_path(folder)


@pytest.mark.parametrize("dialect", ["paper", "authors"])
@pytest.mark.parametrize("mode", MODES)
def test_every_waypoint_has_them_bit_for_bit(data, tmp_path, mode: str, dialect: str) -> None:
    start, end = networks()
    path = search(data, tmp_path / "run", mode, start, end, dialect=dialect)
    assert len(path) > 2
    for state in path:
        for name in FROZEN:
            assert torch.equal(state[name], start.state_dict()[name])
    for name in ("base.bias", "head.weight", "head.bias"):
        assert not torch.equal(path[-1][name], path[0][name])


@pytest.mark.parametrize(
    "changes",
    [{"pacing": {"kind": "adaptive"}}, {"schedule": {"kind": "data-flow"}}, {"spheres": {"variance": "blend"}}],
)
def test_so_do_the_other_ways_of_searching(data, tmp_path, changes: dict[str, Any]) -> None:
    start, end = networks()
    joined = StepSettings(relative=0.3, join_bias=True)
    path = search(data, tmp_path / "run", "m2m", start, end, step=joined, **changes)
    for state in path:
        assert all(torch.equal(state[name], start.state_dict()[name]) for name in FROZEN)


def test_the_way_is_that_of_the_others(data, tmp_path) -> None:
    """The distance on record is the one that PyTorch measures over what moves."""
    start, _ = networks()
    path = search(data, tmp_path / "run", "m2o", start, None, step=StepSettings(relative=0.3, join_bias=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    moving = [name for name, parameter in start.named_parameters() if name not in FROZEN]
    initial = math.hypot(*(float(start.state_dict()[name].double().norm()) for name in moving))
    assert first["distance"] < initial
    at_one = math.hypot(*(float(path[1][name].double().norm()) for name in moving))
    # The waypoint is the point that training left: toward the origin nothing is projected.
    assert first["distance"] == pytest.approx(at_one, rel=1e-5)


def test_toward_a_model_they_have_to_be_equal(data, tmp_path) -> None:
    start, end = networks()
    with torch.no_grad():
        end.base.weight[0, 0] += 1e-3
    with pytest.raises(
        LLPFError, match=r"frozen parameters .* differ .*: base\.weight; give both the same, or set layers\.m"
    ):
        search(data, tmp_path / "run", "m2m", start, end)
    assert not (tmp_path / "run").exists()
    path = search(data, tmp_path / "moved", "m2m", start, end, layers=LayerSettings(move_frozen=True))
    assert torch.equal(path[-1]["base.weight"], end.base.weight)
    assert not torch.equal(path[1]["base.weight"], start.base.weight)


def test_toward_a_sphere_they_have_to_lie_on_it(data, tmp_path) -> None:
    start, end = networks()
    with torch.no_grad():
        end.base.weight *= 2
    for mode in ("variance-sphere", "norm-sphere"):
        with pytest.raises(LLPFError, match=r"layer base\.weight is frozen .* layers\.move_frozen: true"):
            search(data, tmp_path / mode, mode, start, end)


def test_they_move_where_that_is_asked_for(data, tmp_path) -> None:
    start, _ = networks()
    path = search(data, tmp_path / "run", "m2o", start, None, layers=LayerSettings(move_frozen=True))
    assert float(path[-1]["base.weight"].norm()) < 0.5 * float(start.base.weight.norm())


def test_a_network_that_is_frozen_as_a_whole_is_refused(data, tmp_path) -> None:
    start, end = networks()
    with pytest.raises(LLPFError, match=r"every parameter of the model is frozen .* nothing can be trained"):
        llpf_fast.find_path(Frozen().requires_grad_(False), start, end, data=data, settings=Settings(threshold=5.0))


def test_what_the_ends_train_does_not_matter(data, tmp_path) -> None:
    """Only the architecture says what is frozen."""
    start, end = networks()
    start.requires_grad_(False)
    end.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = search(data, tmp_path / "run", "m2m", start, end)
    assert torch.equal(path[-1]["head.weight"], end.head.weight)
