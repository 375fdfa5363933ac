"""M2M between models of different variance: spheres that blend, and shrinking first."""

from __future__ import annotations

import pytest
import torch

from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, StepSettings
from llpf_fast.path import LowLossPath

from .conftest import changed, eval_loss, parameters_of, quick

#: Of the network that ``rescaled`` belongs to; its first layer grows, its second shrinks.
LAYERS = ("0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias")


def variance(state, name: str) -> float:
    return float(state[name].double().var())


@pytest.mark.usefixtures("never_arrives")
@pytest.mark.parametrize("pacing", ["fixed", "adaptive"])
def test_blending_spheres_follow_the_way_each_layer_has_come(finder, endpoints, rescaled, tmp_path, pacing) -> None:
    settings = quick(spheres={"variance": "blend"}, max_ticks=12, arrival={"every": 1000}, pacing={"kind": pacing})
    path = LowLossPath(finder(tmp_path / "run", destination=rescaled, settings=settings).run().folder)
    ticks = [waypoint.tick for waypoint in path.directory.waypoints()]
    metrics = [record for record in path.metrics() if not record.get("rolled_back")]
    names = list(parameters_of(path[0]))
    for name in LAYERS:
        i = names.index(name)
        whole = float((rescaled[name] - endpoints[0][name]).double().norm())
        come = 0.0
        for tick, state in list(zip(ticks, path, strict=True))[1:]:
            (record,) = [r for r in metrics if r["tick"] == tick]
            come = max(come, 1 - record["distances"][i] / whole)
            want = variance(path[0], name) * (1 - come) + variance(rescaled, name) * come
            assert variance(state, name) == pytest.approx(want, rel=2e-5)
        assert come > 0.1


def test_blending_arrives_with_the_destinations_variances(finder, rescaled, digits, tmp_path) -> None:
    """A long way without arrival: with the start's spheres layers would stop at another size than the destination."""
    last = {}
    for variant in ("start", "blend"):
        settings = quick(
            spheres={"variance": variant}, max_ticks=40, arrival={"every": 1000}, step=StepSettings(relative=0.15)
        )
        path = LowLossPath(finder(tmp_path / variant, destination=rescaled, settings=settings).run().folder)
        last[variant] = path[40]
        assert max(eval_loss(state, digits) for state in path) < 0.15
    for name in ("0.weight", "3.weight"):
        goal = variance(rescaled, name)
        assert variance(last["blend"], name) == pytest.approx(goal, rel=0.1)
        assert abs(variance(last["start"], name) / goal - 1) > 0.5
    settings = quick(spheres={"variance": "blend"})
    result = finder(tmp_path / "whole", destination=rescaled, settings=settings).run()
    assert result.arrived
    LowLossPath(result.folder).directory.check()


def test_shrink_first_shrinks_what_is_too_wide(finder, standstill, endpoints, rescaled, tmp_path) -> None:
    settings = quick(spheres={"variance": "shrink-first"}, max_ticks=25, arrival={"every": 1000})
    path = LowLossPath(finder(tmp_path / "run", destination=rescaled, settings=settings).run().folder)
    start, names = path[0], list(parameters_of(path[0]))
    wide = [n for n in LAYERS if variance(start, n) > 1.01 * variance(rescaled, n)]
    assert {"3.weight", "3.bias"} <= set(wide)
    assert "0.weight" not in wide
    needed = {}
    for name in wide:
        values, ticks = variance(start, name), 0
        while values > 1.01 * variance(rescaled, name):
            values, ticks = values * 0.95**2, ticks + 1
        needed[name] = ticks
    last = max(needed.values())
    assert 8 < last < 20
    for tick in range(1, last + 1):
        for name in names:
            shrinking = min(tick, needed.get(name, 0))
            torch.testing.assert_close(path[tick][name], start[name] * 0.95**shrinking, rtol=1e-5, atol=1e-8)
            assert shrinking or torch.equal(path[tick][name], start[name])
    # The main phase moves everything toward the destination, on the spheres reached.
    assert changed(parameters_of(path[last]), parameters_of(path[last + 1])) == set(names)
    for name in LAYERS:
        assert variance(path[25], name) == pytest.approx(variance(path[last], name), rel=1e-5)
    # The learning-rate rule belongs to the first phase alone.
    factors = dict(zip(names, standstill.scales[last - 1].tolist(), strict=True))
    assert factors["3.weight"] == pytest.approx(0.95 ** (2 * needed["3.weight"]), rel=1e-4)
    assert factors["0.weight"] == pytest.approx(1.0)
    assert all(scale is None for scale in standstill.scales[last:])


def test_the_first_leg_ends_after_shrink_ticks(finder, standstill, rescaled, tmp_path) -> None:
    settings = quick(spheres={"variance": "shrink-first", "shrink_ticks": 4}, max_ticks=6, arrival={"every": 1000})
    path = LowLossPath(finder(tmp_path / "run", destination=rescaled, settings=settings).run().folder)
    assert [torch.equal(path[i]["0.weight"], path[0]["0.weight"]) for i in range(7)] == [True] * 5 + [False] * 2


def test_shrink_first_arrives(finder, rescaled, digits, tmp_path) -> None:
    settings = quick(spheres={"variance": "shrink-first"}, arrival={"every": 1})
    result = finder(tmp_path / "run", destination=rescaled, settings=settings).run()
    assert result.arrived
    assert result.ticks > 8  # never in the first phase
    path = LowLossPath(result.folder)
    path.directory.check()
    assert max(eval_loss(state, digits) for state in path) < 0.15


def test_a_rule_that_was_asked_for_holds_in_both_phases(finder, standstill, rescaled, tmp_path) -> None:
    settings = quick(
        spheres={"variance": "shrink-first", "shrink_ticks": 2},
        max_ticks=3,
        correction=CorrectionSettings(lr_rule="std"),
    )
    finder(tmp_path / "run", destination=rescaled, settings=settings).run()
    factors = [scale.tolist()[4] for scale in standstill.scales]
    assert factors == pytest.approx([0.95, 0.95**2, 0.95**2], rel=1e-4)


@pytest.mark.parametrize("variant", ["blend", "shrink-first"])
def test_a_destination_without_variance_is_refused(finder, rescaled, tmp_path, variant) -> None:
    flat = {**rescaled, "3.bias": torch.zeros(32)}
    with pytest.raises(LLPFError, match=r"layer 3\.bias of the destination has variance 0.*layers\.keep"):
        finder(tmp_path / "run", destination=flat, settings=quick(spheres={"variance": variant}))
    assert not (tmp_path / "run").exists()
