"""What users get wrong: one line that names the culprit and the remedy, and no run directory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import llpf_fast
from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, LayerSettings, Settings
from llpf_fast.modes import MODES
from llpf_fast.path import LowLossPath

from .conftest import changed, network, parameters_of, quick


def refused(make, folder, message, **options) -> None:
    with pytest.raises(LLPFError, match=message) as caught:
        make(folder, **options).run()
    assert "\n" not in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mode": "variance-sphere", "spheres": {"radii": {"0.weight": 0.0}}},
            r"spheres.radii\['0.weight'\] must be positive, got 0",
        ),
        ({"mode": "norm-sphere", "spheres": {"radii": {"*": -1.0}}}, r"spheres.radii\['\*'\] must be positive, got -1"),
        ({"mode": "norm-sphere", "spheres": {"radii": {"*": float("nan")}}}, r"radii\['\*'\] must be a finite number"),
        ({"mode": "norm-sphere", "spheres": {"radii": {"conv*": 1.0}}}, r"spheres.radii pattern 'conv\*' matches"),
        ({"mode": "variance-sphere"}, "needs spheres: numbers in the settings, or a model"),
        (
            {"spheres": {"radii": {"*": 1.0}}},
            "spheres.radii belongs to the modes variance-sphere and norm-sphere, not to m2m",
        ),
        ({"mode": "m2o", "spheres": {"variance": "blend"}}, "spheres.variance: blend belongs to mode m2m"),
        ({"mode": "m2x"}, "mode must be one of m2m, m2o, .*; got 'm2x'"),
        ({"pacing": {"kind": "adaptiv"}}, "pacing.kind must be one of fixed, adaptive"),
        ({"layers": {"normalization": "hold"}}, "layers.normalization must be one of move, keep"),
        ({"correction": {"lr_rule": "variance"}}, "correction.lr_rule must be one of none, std, var"),
    ],
)
def test_settings(finder, tmp_path, changes, message) -> None:
    refused(lambda out: finder(out, settings=quick(**changes)), tmp_path / "run", message)


def test_destinations(finder, endpoints, rescaled, digits, tmp_path) -> None:
    out = tmp_path / "run"
    for mode in ("m2o", "m2o-o", "infinity", "mean"):
        refused(finder, out, f"mode {mode} takes no destination", destination=endpoints[1], settings=quick(mode=mode))
    by_number = quick(mode="norm-sphere", spheres={"radii": {"*": 1.0}})
    refused(finder, out, "spheres are given twice", destination=rescaled, settings=by_number)
    with pytest.raises(LLPFError, match="mode m2m needs a destination"):
        llpf_fast.find_path(network(), endpoints[0], data=digits, settings=quick(), out=out)
    for mode in ("variance-sphere", "norm-sphere"):
        message = "start lies at the destination already"
        refused(finder, out, message, destination=endpoints[0], settings=quick(mode=mode))
    zero = {**rescaled, "3.bias": torch.zeros(32)}
    for mode, what in (("variance-sphere", "variance"), ("norm-sphere", "norm")):
        message = rf"sphere of layer 3\.bias has {what} 0; it must be positive.*layers\.keep"
        refused(finder, out, message, destination=zero, settings=quick(mode=mode))
    settings = quick(mode="norm-sphere", layers=LayerSettings(keep=["3.bias"]))
    assert finder(out, destination=zero, settings=settings).run().arrived


@pytest.mark.parametrize("mode", ["variance-sphere", "norm-sphere"])
def test_a_start_that_lies_on_the_numbered_sphere_arrives_at_once(finder, endpoints, tmp_path, mode) -> None:
    value = endpoints[0]["0.weight"].double()
    number = float(value.var() if mode == "variance-sphere" else value.norm())
    settings = quick(mode=mode, spheres={"radii": {"0.weight": number * (1 + 1e-9)}}, max_ticks=4, arrival={"every": 1})
    result = finder(tmp_path / "run", settings=settings).run()
    assert (result.arrived, result.ticks) == (True, 1)


def test_spheres_of_another_architecture(endpoints, digits, tmp_path) -> None:
    other = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    file = tmp_path / "other.pt"
    torch.save(other.state_dict(), file)
    for given in (other, other.state_dict(), file):
        with pytest.raises(LLPFError, match=r"other\.pt|destination|0\.weight") as caught:
            llpf_fast.find_path(
                network(), endpoints[0], given, data=digits, settings=quick(mode="norm-sphere"), out=tmp_path / "run"
            )
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def scattered(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (scattered, r"loss function must return a scalar tensor, the mean over the batch; got shape \[\d+\]"),
        (lambda o, t: float(nn.functional.cross_entropy(o, t)), "must return a scalar tensor.* got type float"),
        (nn.functional.mse_loss, r"loss function fails on output of shape \[\d+, 10\] and targets of shape \[\d+\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_losses(finder, tmp_path, loss_fn, message) -> None:
    refused(finder, tmp_path / "run", message, loss_fn=loss_fn)


def test_a_loss_without_a_gradient(finder, tmp_path) -> None:
    def detached(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.detach(), target)

    with pytest.raises(LLPFError, match="tick 1: the loss depends on no parameter that trains"):
        finder(tmp_path / "run", loss_fn=detached).run()
    with pytest.raises(LLPFError, match="every parameter of the model is frozen"):
        finder(tmp_path / "frozen", module=network().requires_grad_(False)).run()


def test_batches_that_only_training_cannot_take(finder, tmp_path) -> None:
    """BatchNorm refuses a batch of one in training, and only there."""
    single = CorrectionSettings(batch_size=1)
    with pytest.raises(LLPFError, match=r"tick 1: the model's forward fails on data of shape \[1, 64\]: Expected more"):
        finder(tmp_path / "run", settings=quick(correction=single)).run()


def test_mixed_dtypes(finder, endpoints, tmp_path) -> None:
    module = network()
    module[3].to(torch.float64)
    refused(finder, tmp_path / "run", r"float32.*float64|float64.*float32", module=module)


class Every(nn.Module):
    """Every normalization but BatchNorm, a tied weight and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.group = nn.GroupNorm(4, 64)
        self.instance = nn.InstanceNorm1d(8, affine=True)
        self.a = nn.Linear(64, 64)
        self.rms = nn.RMSNorm(64)
        self.b = nn.Linear(64, 64)
        self.b.weight = self.a.weight
        self.layer = nn.LayerNorm(64)
        self.last = nn.Linear(64, 10)
        self.first.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.group(self.first(x)).relu().unflatten(1, (8, 8))).flatten(1)
        x = self.rms(self.a(x)).relu()
        return self.last(self.layer(self.b(x)).relu())


@pytest.fixture(scope="module")
def every_ends() -> list[dict[str, Tensor]]:
    endpoints = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            module = Every()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
            endpoints.append({name: value.clone() for name, value in module.state_dict().items()})
    return endpoints


def every(finder, endpoints, folder, mode: str, **changes) -> LowLossPath:
    settings = quick(mode=mode, threshold=20.0, max_ticks=3, **changes)
    destination = endpoints[1] if mode == "m2m" or mode.endswith("sphere") else None
    result = finder(folder, start=endpoints[0], destination=destination, module=Every(), settings=settings).run()
    path = LowLossPath(result.folder)
    path.directory.check()
    assert len(path) == 4
    for state in path:
        assert torch.equal(state["a.weight"], state["b.weight"])
        assert all(bool(value.isfinite().all()) for value in state.values())
    return path


NORMS = {f"{name}.{kind}" for name in ("group", "instance", "layer") for kind in ("weight", "bias")} | {"rms.weight"}


@pytest.mark.usefixtures("never_arrives")
@pytest.mark.parametrize("mode", MODES)
def test_normalizations_tied_and_frozen_parameters(finder, standstill, every_ends, tmp_path, mode) -> None:
    """Frozen parameters are moved where that is asked for: they are only not trained."""
    path = every(finder, every_ends, tmp_path / "moved", mode, layers=LayerSettings(move_frozen=True))
    names = set(parameters_of(path[0], Every()))
    assert "b.weight" not in names
    assert changed(path[0], path[3]) & names == (names - NORMS if MODES[mode].paper == "keep" else names)


@pytest.mark.usefixtures("never_arrives")
@pytest.mark.parametrize("mode", MODES)
def test_frozen_parameters_are_never_trained(finder, every_ends, tmp_path, mode) -> None:
    layers = LayerSettings(keep=["first.weight"], move_frozen=True)
    correction = CorrectionSettings(threshold=20.0, window=2, max_steps=2, lr=0.05)
    path = every(finder, every_ends, tmp_path / "run", mode, layers=layers, correction=correction)
    assert torch.equal(path[3]["first.weight"], path[0]["first.weight"])
    assert "a.weight" in changed(path[0], path[3])


def test_unknown_settings_are_named(endpoints, digits) -> None:
    with pytest.raises(LLPFError, match=r"unknown key 'distanation'"):
        llpf_fast.find_path(network(), *endpoints, data=digits, settings=Settings(), distanation=1)
