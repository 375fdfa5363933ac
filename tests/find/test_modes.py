"""Where every mode leads: exact moves without training, and whole searches with it."""

from __future__ import annotations

import pytest
import torch

import llpf_fast
from llpf_fast.find import CorrectionSettings, LayerSettings, Settings, StageSettings, StepSettings
from llpf_fast.path import LowLossPath

from .conftest import Attentive, Convolutional, changed, eval_loss, network, parameters_of, quick, train

STEP = 0.05
NORM = {"1.weight", "1.bias"}


def along(finder, folder, **changes) -> LowLossPath:
    settings = quick(**{"max_ticks": 3, "arrival": {"every": 1000}, **changes})
    path = LowLossPath(finder(folder, settings=settings).run().folder)
    path.directory.check()
    return path


@pytest.mark.parametrize(("mode", "factor"), [("m2o", 1 - STEP), ("m2o-o", 1 - STEP), ("infinity", 1 + STEP)])
def test_origin_and_infinity_scale_every_layer(finder, standstill, tmp_path, mode, factor) -> None:
    path = along(finder, tmp_path / "run", mode=mode)
    first, last = path[0], path[3]
    for name, value in parameters_of(first).items():
        if mode != "m2o" and name in NORM:
            assert torch.equal(last[name], value)
        else:
            torch.testing.assert_close(last[name], value * factor**3, rtol=1e-5, atol=1e-8)
    statistics = first.keys() - parameters_of(first).keys()
    assert statistics
    assert all(torch.equal(last[name], first[name]) for name in statistics)


def test_mean_keeps_the_mean_and_shrinks_what_is_about_it(finder, standstill, tmp_path) -> None:
    path = along(finder, tmp_path / "run", mode="mean")
    for name, value in parameters_of(path[0]).items():
        want = value if name in NORM else value.mean() + (value - value.mean()) * (1 - STEP) ** 3
        torch.testing.assert_close(path[3][name], want, rtol=1e-4, atol=1e-7)


def test_joined_bias_moves_by_the_weights_fraction(finder, standstill, tmp_path) -> None:
    moved = {}
    for join in (False, True):
        step = StepSettings(fixed=0.3, relative=0.0, join_bias=join)
        path = along(finder, tmp_path / str(join), mode="m2o", max_ticks=1, step=step)
        a, b = path[0], path[1]
        moved[join] = {name: float((a[name] - b[name]).norm()) for name in ("0.weight", "0.bias")}
        both = torch.cat([a["0.weight"].flatten(), a["0.bias"]]).norm()
    assert list(moved[False].values()) == pytest.approx([0.3, 0.3], rel=1e-4)
    assert sum(v * v for v in moved[True].values()) ** 0.5 == pytest.approx(0.3, rel=1e-4)
    assert moved[True]["0.bias"] == pytest.approx(0.3 * float(a["0.bias"].norm() / both), rel=1e-4)


@pytest.mark.parametrize("biases", [False, True])
def test_only_attention_values_move(digits, standstill, finder, tmp_path, biases) -> None:
    start = train(5, digits, Attentive)
    layers = LayerSettings(attention="values", attention_biases=biases)
    settings = quick(mode="m2o", layers=layers, max_ticks=3, threshold=9.0)
    path = LowLossPath(finder(tmp_path / "run", start=start, module=Attentive(), settings=settings).run().folder)
    before, after = path[0], path[3]
    assert torch.equal(after["attention.qkv.weight"][:32], before["attention.qkv.weight"][:32])
    factor = (1 - STEP) ** 3
    torch.testing.assert_close(
        after["attention.qkv.weight"][32:], before["attention.qkv.weight"][32:] * factor, rtol=1e-5, atol=1e-8
    )
    assert torch.equal(after["attention.qkv.bias"][:32], before["attention.qkv.bias"][:32]) == biases
    torch.testing.assert_close(after["embed.weight"], before["embed.weight"] * factor, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", ["m2o", "m2o-o", "infinity", "mean"])
def test_endless_modes_run_all_ticks_below_the_threshold(convolutional_ends, digits, tmp_path, mode) -> None:
    path = llpf_fast.find_path(
        Convolutional(),
        convolutional_ends[0],
        data=digits,
        settings=quick(mode=mode, max_ticks=8, correction=CorrectionSettings(threshold=0.05, max_steps=60, lr=0.05)),
        out=tmp_path / "run",
    )
    assert len(path) == 9
    status = path.directory.status
    assert (status["ended"], status["arrived"]) == ("max_ticks", False)
    assert max(eval_loss(state, digits, Convolutional()) for state in path) < 0.15
    variances = [float(state["1.weight"].var()) for state in (path[0], path[8])]
    assert (variances[1] > 1.3 * variances[0]) if mode == "infinity" else (variances[1] < 0.7 * variances[0])
    # Normalization layers are trained in every mode.
    assert "2.weight" in changed(path[0], path[8])


def test_m2m_between_convolutional_networks(convolutional_ends, digits, tmp_path) -> None:
    path = llpf_fast.find_path(
        Convolutional(), *convolutional_ends, data=digits, settings=quick(), out=tmp_path / "run"
    )
    path.directory.check()
    assert path.directory.status["ended"] == "arrived"
    assert max(eval_loss(state, digits, Convolutional()) for state in path) < 0.15


def spheres(mode: str, of) -> dict[str, float]:
    measure = torch.Tensor.var if mode == "variance-sphere" else torch.Tensor.norm
    return {name: float(measure(value.double())) for name, value in of.items() if value.numel() > 1}


@pytest.mark.parametrize(
    "stages", [[StageSettings(0)], [StageSettings(0, ["0.*"]), StageSettings(2, ["3.*", "5.*", "1.*"])]], ids=["1", "2"]
)
@pytest.mark.parametrize("mode", ["variance-sphere", "norm-sphere"])
def test_a_models_spheres_are_reached_by_all_layers(finder, rescaled, digits, tmp_path, mode, stages) -> None:
    settings = quick(mode=mode, arrival={"every": 1}, schedule={"stages": stages})
    result = finder(tmp_path / "run", destination=rescaled, settings=settings).run()
    assert result.arrived
    path = LowLossPath(result.folder)
    path.directory.check()
    assert len(path) == result.waypoints
    want, got = (spheres(mode, parameters_of(state)) for state in (rescaled, path[len(path) - 1]))
    assert got == pytest.approx(want, rel=1e-4)
    assert max(eval_loss(state, digits) for state in path) < 0.15


@pytest.mark.parametrize("mode", ["variance-sphere", "norm-sphere"])
def test_spheres_by_numbers(finder, endpoints, digits, tmp_path, mode) -> None:
    start_spheres = spheres(mode, parameters_of(endpoints[0]))
    target = start_spheres["0.weight"] * 2
    progress: list[llpf_fast.TickProgress] = []
    settings = quick(mode=mode, spheres={"radii": {"0.weight": target}}, arrival={"every": 1})
    result = finder(tmp_path / "run", settings=settings, progress=progress.append).run()
    assert result.arrived
    path = LowLossPath(result.folder)
    got = spheres(mode, parameters_of(path[len(path) - 1]))
    assert got["0.weight"] == pytest.approx(target, rel=1e-4)
    assert got["3.weight"] == pytest.approx(start_spheres["3.weight"], rel=0.05)
    # Layers without a sphere have no way to go and do not count as such.
    assert path.metrics()[0]["distances"][2:] == [0.0] * 6
    assert progress[0].distance == pytest.approx(1 - STEP, abs=0.02)


def test_a_mode_of_its_own_needs_no_other_setting(endpoints, digits, tmp_path) -> None:
    path = llpf_fast.find_path(
        network(), endpoints[0], data=digits, settings=Settings(mode="m2o", max_ticks=2), out=tmp_path / "run"
    )
    assert len(path) == 3


@pytest.mark.parametrize("margin", [0.6, 1e-9], ids=["arrived", "not arrived"])
def test_layers_of_norm_0_are_named(finder, standstill, endpoints, tmp_path, margin) -> None:
    """No direction leads from 0 to a sphere; 5.bias is 0 too, but no sphere waits for it."""
    start = {name: value.clone() for name, value in endpoints[0].items()}
    for name in ("3.bias", "5.bias"):
        start[name].zero_()
    wanted = {"0.weight": float(start["0.weight"].norm()) * 1.01, "3.bias": 1.0, "1.bias": 1.0}
    settings = quick(
        mode="norm-sphere", spheres={"radii": wanted}, threshold=50.0, max_ticks=3, arrival={"margin": margin}
    )
    result = finder(tmp_path / "run", start=start, settings=settings).run()
    assert result.arrived == (margin > 0.5)
    (note,) = result.notes
    assert note == "not on their spheres, because from norm 0 no direction leads there: 3.bias"
    path = LowLossPath(result.folder)
    assert path.directory.status["notes"] == [note]
    assert not path[len(path) - 1]["3.bias"].any()
    start["3.bias"][0] = 1e-3
    whole = finder(tmp_path / "whole", start=start, settings=settings).run()
    assert whole.notes == ()
    assert "notes" not in LowLossPath(whole.folder).directory.status
