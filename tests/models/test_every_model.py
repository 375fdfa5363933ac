"""Every network of the papers through two ticks of M2M, M2O and M2O-O with three images, and its certificate.

What must stay is compared bit for bit around each move: training between the moves goes on as usual. The certificate's
verdict says nothing here, the networks are hardly trained.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast.find import CorrectionSettings, PathFinder, Settings, StepSettings
from llpf_fast.find import search as path_search
from llpf_fast.models import build_model, model_names
from llpf_fast.path import LowLossPath
from llpf_fast.tick.route import Route
from llpf_fast.verify import Limits, verify_run

MODELS = {
    "lenet5": (1, 28, 28),
    "mlp": (1, 8, 8),
    "resnet18": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "cct7": (3, 32, 32),
    "vgg16": (3, 32, 32),
    "mobilenet-v2": (3, 32, 32),
    "shufflenet-v2": (3, 32, 32),
    "efficientnet-b0": (3, 32, 32),
    "regnetx-200mf": (3, 32, 32),
    "dla": (3, 32, 32),
    "vit-tiny": (3, 32, 32),
}
MODES = ("m2m", "m2o", "m2o-o")
#: The first from the endpoint, the second from trained parameters; data flow has a layer, then one more.
TICKS = 2
#: Certified in every mode, the others in one: the certificate sees waypoints, however they were found, and takes as
#: long as the search.
SMALL = ("lenet5", "mlp")
RELATIVE = 0.02
#: Far above any loss of an untrained network, whose BatchNorm statistics do not fit its data (DLA: 500).
THRESHOLD = 1e4
#: torch's types, independent of what the package takes for a normalization layer.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)

State = dict[str, Tensor]


@lru_cache(maxsize=2)
def initialised(name: str, seed: int) -> nn.Module:
    """An initialisation without zeros, in which a move toward the origin would not show, and with other statistics.

    A second to make; kept for the other modes, so a copy of it is searched.
    """
    torch.manual_seed(seed)
    model = build_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1 + 0.1 * torch.rand_like(buffer))
            else:
                buffer.add_(5)
    return model


def norm_parameters(model: nn.Module) -> set[str]:
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, NORMS)]
    return {f"{path}.{name}" for path, layer in layers for name, _ in layer.named_parameters(recurse=False)}


@dataclass
class Move:
    """Values and statistics right before and right after one move, and the waypoint it recorded."""

    before: State
    after: State
    statistics_before: State
    statistics_after: State


@dataclass
class Watch:
    moves: list[Move] = field(default_factory=list)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    tick = Route.tick

    def watched(self: Route, p: Tensor, **options: Any) -> None:
        def parameters() -> State:
            return {name: value.detach().clone() for name, value in self.flat.module.named_parameters()}

        def buffers() -> State:
            return {name: value.clone() for name, value in self.flat.module.named_buffers()}

        before, statistics = parameters(), buffers()
        tick(self, p, **options)
        watch.moves.append(Move(before, parameters(), statistics, buffers()))

    monkeypatch.setattr(Route, "tick", watched)
    # Networks that never learned anything are as bad anywhere: the last tick would arrive.

    def never(self: Any) -> Generator[Any, Any, bool]:
        return False
        yield

    monkeypatch.setattr(path_search.PathSearch, "_rest_is_low", never)
    return watch


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which it keeps: the runs of all networks are 4 GB."""
    with tempfile.TemporaryDirectory(prefix="llpf-every-model-") as path:
        yield Path(path) / "run"


def settings_of(mode: str) -> Settings:
    settings = Settings(
        mode=mode,  # type: ignore[arg-type]
        threshold=THRESHOLD,
        max_ticks=TICKS,
        step=StepSettings(relative=RELATIVE),
        correction=CorrectionSettings(threshold=THRESHOLD, window=1, max_steps=1, batch_size=2, lr=1e-4),
        record={"checkpoint_every": 2 * TICKS},
    )
    if mode == "m2o":
        # The order of layers from a forward pass, one more a tick.
        settings = settings.changed(schedule={"kind": "data-flow", "ticks": 1})
    return settings


def test_every_network_is_here() -> None:
    others = {"vgg11-bn", "vgg16-bn", "vit-small"}  # the same code with more layers
    assert set(MODELS) == set(model_names()) - others


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_two_ticks_and_a_certificate(name: str, mode: str, watch: Watch, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        data = torch.randn(3, *MODELS[name]), torch.tensor([1, 8, 0])
        module, other = (copy.deepcopy(initialised(name, seed)) for seed in (1, 2))
    start = {key: value.clone() for key, value in module.state_dict().items()}
    destination = other.state_dict() if mode == "m2m" else None
    parameters = dict(module.named_parameters())
    norms = norm_parameters(module)
    statistics = {key for key, _ in module.named_buffers()}
    excluded = norms if mode == "m2o-o" else set()

    result = PathFinder(module, start, destination, settings=settings_of(mode), train=data, out=folder).run()

    assert (result.ticks, result.sgd_steps, result.waypoints) == (TICKS, TICKS, TICKS + 1)
    assert len(watch.moves) == TICKS
    path = LowLossPath(folder)
    for key, value in path[0].items():
        assert torch.equal(value, start[key]), key
    trained = 0
    for k, move in enumerate(watch.moves):
        waypoint = path[k]
        assert all(value.isfinite().all() for value in waypoint.values())
        for key in statistics:
            assert torch.equal(move.statistics_before[key], move.statistics_after[key]), f"move {k} changed {key}"
            assert torch.equal(move.statistics_before[key], waypoint[key]), f"waypoint {k} has another {key}"
        for key in excluded:
            assert torch.equal(move.before[key], move.after[key]), f"move {k} changed {key}"
            assert torch.equal(move.before[key], waypoint[key]), f"waypoint {k} has another {key}"
            trained += k > 0 and not torch.equal(move.before[key], start[key])
        check_move(mode, k, move, {key: waypoint[key] for key in parameters}, destination, norms)
    assert all(value.isfinite().all() for value in path[TICKS].values())
    # Otherwise nothing would tell values that training changes from values that nothing touches.
    assert bool(trained) == bool(excluded)
    counters = [key for key in statistics if key.endswith("num_batches_tracked")]
    assert {int(path[TICKS][key] - start[key]) for key in counters} <= {TICKS}

    if mode != "m2m" and name not in SMALL:
        return
    # Evaluating these networks is what takes the time here.
    certificate = verify_run(folder, model=module, train=data, limits=Limits(evaluations=1), straight_points=0)
    written = json.loads((folder / "certificate.json").read_text())
    assert written["max_loss"] == certificate.max_loss < THRESHOLD
    assert written["waypoints"] == TICKS + 1
    assert certificate.verdict != "refuted"
    assert written["straight_line"] == []
    # The origin is no network to arrive at; another network is.
    assert bool(written["reasons"]) == (mode == "m2m")
    assert all("not reached" in reason for reason in written["reasons"])


def check_move(mode: str, k: int, move: Move, waypoint: State, destination: Any, norms: set[str]) -> None:
    """The formula of each mode (LLPF, arXiv 2505.02604), layer by layer."""
    moved = {key for key, value in move.before.items() if not torch.equal(value, move.after[key])}
    if mode == "m2m":
        assert moved == set(move.before)
        for key, value in waypoint.items():
            toward = value + RELATIVE * (destination[key] - value)
            if key in norms or value.numel() == 1:
                expected = toward
            else:
                mean = toward.mean()
                expected = mean + (toward - mean) * (value.double().var() / toward.double().var()).sqrt().float()
            torch.testing.assert_close(
                move.after[key], expected, rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, key)
            )
        return
    for key in moved:
        torch.testing.assert_close(move.after[key], (1 - RELATIVE) * move.before[key], rtol=1e-6, atol=1e-9)
    if mode == "m2o-o":
        assert moved == set(move.before) - norms
    else:
        # One more layer a tick.
        assert moved
        assert len(moved) < len(move.before) or k > 0
