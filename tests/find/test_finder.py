"""The search on real digits: endpoints, constraint, spheres, stages, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, StageSettings, StepSettings
from llpf_fast.flat import FlatParameters
from llpf_fast.path import LowLossPath

from .conftest import eval_loss, network, quick


def test_finds_a_path_between_independent_networks(finder, endpoints, digits, tmp_path) -> None:
    middle = {k: torch.lerp(a, endpoints[1][k], 0.5) if a.is_floating_point() else a for k, a in endpoints[0].items()}
    assert eval_loss(middle, digits) > 0.3  # else there is nothing to show
    progress = []
    result = finder(tmp_path / "run", progress=progress.append).run()
    assert result.arrived
    assert result.ticks == len(progress) == progress[-1].tick
    assert result.sgd_steps == progress[-1].steps
    assert 0 < progress[-1].distance < progress[0].distance < 1
    path = LowLossPath(result.folder)
    path.directory.check()
    assert len(path) == result.waypoints == result.ticks + 2
    for got, want in ((path[0], endpoints[0]), (path[len(path) - 1], endpoints[1])):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) for k in want)
    assert max(eval_loss(state, digits) for state in path) < 0.15


def test_waypoints_lie_on_the_starts_variance_spheres(finder, endpoints, tmp_path) -> None:
    result = finder(tmp_path / "run", settings=quick(max_ticks=6, arrival={"every": 100})).run()
    assert not result.arrived
    path = LowLossPath(result.folder)
    assert len(path) == 7
    for state in path:
        for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
            torch.testing.assert_close(state[name].var(), endpoints[0][name].var(), rtol=1e-5, atol=0)
    # The affine parameters of the normalization layer move, but have no sphere to return to.
    assert not torch.allclose(path[6]["1.weight"].var(), endpoints[0]["1.weight"].var(), rtol=1e-5)


@pytest.mark.parametrize("pacing", ["fixed", "adaptive"])
@pytest.mark.parametrize(("every", "recorded"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4])])
def test_a_waypoint_is_recorded_in_its_tick_and_moved_on_from(finder, tmp_path, pacing, every, recorded) -> None:
    last, ticks = [0], []

    def progress(_) -> None:
        run = searching._search._record.run
        last.append(run.waypoints()[-1].tick)
        if last[-1] > last[-2]:
            ticks.append(last[-1])
            on_disk, now = run.waypoints()[-1].load(), searching.flat.state_dict()
            assert all(torch.equal(on_disk[name], now[name]) for name in now)

    settings = quick(max_ticks=4, pacing={"kind": pacing}, record={"every": every}, arrival={"every": 100})
    searching = finder(tmp_path / "run", settings=settings, progress=progress)
    searching.run()
    assert [0, *ticks] == recorded


def test_metrics_say_what_happened(finder, tmp_path) -> None:
    result = finder(tmp_path / "run", settings=quick(max_ticks=3)).run()
    records = LowLossPath(result.folder).metrics()
    assert [r["tick"] for r in records] == [1, 2, 3]
    assert sum(r["rounds"] for r in records) == records[-1]["sgd_steps"] == result.sgd_steps
    for r in records:
        assert math.isclose(r["distance"] ** 2, sum(v * v for v in r["distances"]), rel_tol=1e-6)


def test_same_seed_same_path_another_seed_another(finder, tmp_path) -> None:
    runs = [finder(tmp_path / str(i), settings=quick(max_ticks=3, seed=seed)).run() for i, seed in enumerate((5, 5, 6))]
    a, b, c = (LowLossPath(r.folder)[3] for r in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])


def test_global_generator_and_callers_states_are_untouched(finder, endpoints, tmp_path) -> None:
    torch.manual_seed(0)
    rng, before = torch.get_rng_state(), {k: v.clone() for k, v in endpoints[0].items()}
    module = nn.Sequential(*network(), nn.Dropout(0.1))
    rng = torch.get_rng_state()
    finder(tmp_path / "run", module=module, settings=quick(max_ticks=2)).run()
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[k], endpoints[0][k]) for k in before)


def test_the_last_tick_looks_for_arrival_too(finder, tmp_path) -> None:
    often = finder(tmp_path / "often", settings=quick(arrival={"every": 1})).run()
    assert often.arrived
    assert often.ticks > 1
    last = finder(tmp_path / "last", settings=quick(arrival={"every": 1000}, max_ticks=often.ticks)).run()
    assert (last.arrived, last.ticks, last.waypoints) == (True, often.ticks, often.waypoints)
    LowLossPath(last.folder).directory.check()
    early = finder(tmp_path / "early", settings=quick(arrival={"every": 1000}, max_ticks=often.ticks - 1)).run()
    assert early.ended == "max_ticks"


def test_only_layers_of_the_stage_move(finder, endpoints, tmp_path) -> None:
    settings = quick(
        max_ticks=2,
        schedule={"stages": [StageSettings(0, ["0.*"]), StageSettings(1, ["0.*", "3.*"])]},
        correction=CorrectionSettings(window=1, max_steps=1, lr=1e-12),
    )
    result = finder(tmp_path / "run", settings=settings).run()
    path = LowLossPath(result.folder)
    flat = FlatParameters(network())
    moved = [
        {name for name in flat.table.names if not torch.allclose(path[i][name], path[i + 1][name], atol=1e-6)}
        for i in range(2)
    ]
    assert moved == [{"0.weight", "0.bias"}, {"0.weight", "0.bias", "3.weight", "3.bias"}]


def test_combine_max_takes_the_larger_step(finder, endpoints, tmp_path) -> None:
    correction = CorrectionSettings(window=1, max_steps=1, lr=1e-12)
    lengths = []
    for combine in ("sum", "max"):
        step = StepSettings(fixed=0.2, relative=0.05, combine=combine)
        result = finder(
            tmp_path / combine,
            settings=quick(
                max_ticks=1, step=step, correction=correction, schedule={"stages": [StageSettings(0, ["1.*"])]}
            ),
        ).run()
        state = LowLossPath(result.folder)[1]
        lengths.append(float((state["1.weight"] - endpoints[0]["1.weight"]).norm()))
    distance = float((endpoints[1]["1.weight"] - endpoints[0]["1.weight"]).norm())
    assert lengths[0] == pytest.approx(0.2 + 0.05 * distance, rel=1e-4)
    assert lengths[1] == pytest.approx(max(0.2, 0.05 * distance), rel=1e-4)


def altered(state, name, value):
    return {**state, name: value}


def test_refusals(finder, endpoints, digits, tmp_path) -> None:
    start, destination = endpoints
    cases = {
        "equal parameters": {"destination": start},
        "start: .*0.weight": {"start": altered(start, "0.weight", start["0.weight"] * float("nan"))},
        r"3\.weight": {"destination": altered(destination, "3.weight", torch.zeros(4, 4))},
        "forward fails on data of shape": {"train": (digits[0][:, :50], digits[1])},
        "training data is empty": {"train": (digits[0][:0], digits[1][:0])},
        "the start itself has training loss": {"settings": quick(threshold=1e-6, correction={"threshold": None})},
        "matches no layer": {"settings": quick(schedule={"stages": [StageSettings(0, ["nothing*"])]})},
        "sees no NVIDIA GPU": {"device": "cuda"},
    }
    if torch.cuda.is_available():
        cases.pop("sees no NVIDIA GPU")
    for i, (message, options) in enumerate(cases.items()):
        with pytest.raises(LLPFError, match=message):
            finder(tmp_path / str(i), **options).run()
        assert not (tmp_path / str(i)).exists(), message


def test_divergence_names_tick_and_remedy(finder, tmp_path) -> None:
    wild = CorrectionSettings(threshold=1e-9, window=1, max_steps=50, lr=1e30)
    with pytest.raises(LLPFError, match=r"tick 1: the training loss became .*smaller"):
        finder(tmp_path / "run", settings=quick(correction=wild)).run()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"max_ticks": 0}, "max_ticks"),
        ({"step": {"fixed": 0.0, "relative": 0.0}}, "nothing would move"),
        ({"step": {"relative": -0.1}}, "step.relative"),
        ({"correction": {"window": 5, "max_steps": 4}}, "max_steps"),
        ({"correction": {"lr": float("nan")}}, "correction.lr"),
        ({"schedule": {"stages": []}}, "stages"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, key) -> None:
    with pytest.raises(LLPFError, match=key):
        quick(**changes)
