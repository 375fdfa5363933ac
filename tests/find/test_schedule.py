"""Which layers have moved at which tick. Without training the others keep their bits."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llpf_fast import LLPFError
from llpf_fast.find import LayerSettings, StageSettings, StepSettings
from llpf_fast.path import LowLossPath

from .conftest import Convolutional, changed, parameters_of, quick


def moved(path: LowLossPath) -> list[set[str]]:
    """Layers that each tick moved, by the number that their names begin with."""
    states = [parameters_of(state) for state in path]
    return [{n.split(".")[0] for n in changed(a, b)} for a, b in pairwise(states)]


def ticked(finder, folder, **changes) -> list[set[str]]:
    settings = quick(**{"mode": "m2o", "arrival": {"every": 1000}, "step": StepSettings(relative=0.3), **changes})
    return moved(LowLossPath(finder(folder, settings=settings).run().folder))


def test_data_flow_by_ticks(finder, standstill, tmp_path) -> None:
    flow = {"kind": "data-flow", "ticks": 2, "distance": None}
    got = ticked(finder, tmp_path / "run", schedule=flow, max_ticks=7)
    assert got == [{"0"}] * 2 + [{"0", "1"}] * 2 + [{"0", "1", "3"}] * 2 + [{"0", "1", "3", "5"}]


def test_data_flow_by_distance(finder, standstill, tmp_path) -> None:
    # 0.7 and 0.49 of the distance left: every layer takes two ticks, and the first ones wait for nobody.
    flow = {"kind": "data-flow", "distance": 0.5}
    got = ticked(finder, tmp_path / "run", schedule=flow, max_ticks=7)
    assert got == [{"0"}] * 2 + [{"0", "1"}] * 2 + [{"0", "1", "3"}] * 2 + [{"0", "1", "3", "5"}]


def test_data_flow_skips_layers_that_the_rule_keeps(finder, standstill, tmp_path) -> None:
    flow = {"kind": "data-flow", "ticks": 1, "distance": None}
    got = ticked(finder, tmp_path / "run", mode="m2o-o", schedule=flow, max_ticks=3)
    assert got == [{"0"}, {"0", "3"}, {"0", "3", "5"}]


def test_data_flow_of_a_convolutional_network(finder, standstill, convolutional_ends, tmp_path) -> None:
    settings = quick(mode="m2o", schedule={"kind": "data-flow", "ticks": 1}, max_ticks=5)
    start = convolutional_ends[0]
    run = finder(tmp_path / "run", start=start, module=Convolutional(), settings=settings).run()
    states = [parameters_of(state, Convolutional()) for state in LowLossPath(run.folder)]
    counts = [len({n.split(".")[0] for n in changed(states[0], state)}) for state in states]
    assert counts == [0, 1, 2, 3, 4, 5]


def test_stages_in_turn_by_tick_and_by_distance(finder, standstill, tmp_path) -> None:
    stages = [StageSettings(0, ["0.*"]), StageSettings(None, ["re:[13]\\..*"], distance=0.5), StageSettings(5, ["5.*"])]
    got = ticked(finder, tmp_path / "run", schedule={"stages": stages}, max_ticks=6)
    assert got == [{"0"}] * 2 + [{"1", "3"}] * 3 + [{"5"}]


def test_whichever_comes_first(finder, standstill, tmp_path) -> None:
    stages = [StageSettings(0, ["0.*"]), StageSettings(1, ["3.*"], distance=0.5)]
    assert ticked(finder, tmp_path / "tick", schedule={"stages": stages}, max_ticks=2) == [{"0"}, {"3"}]
    stages = [StageSettings(0, ["0.*"]), StageSettings(90, ["3.*"], distance=0.5)]
    assert ticked(finder, tmp_path / "distance", schedule={"stages": stages}, max_ticks=3) == [{"0"}, {"0"}, {"3"}]


def test_a_layer_that_compensates_holds_no_stage_up(finder, standstill, tmp_path) -> None:
    """It moves away: its distance grows, and waiting for it the stage would never end."""
    layers = LayerSettings(normalization="compensate")
    stages = [StageSettings(0, ["0.*", "1.*"]), StageSettings(None, ["3.*"], distance=0.5)]
    got = ticked(finder, tmp_path / "run", layers=layers, schedule={"stages": stages}, max_ticks=3)
    assert got == [{"0", "1"}, {"0", "1"}, {"3"}]


def test_a_network_arrives_in_the_first_stage_already(finder, tmp_path) -> None:
    """The rest of the way to a model is all of it, whichever layers the stage moves."""
    result = finder(
        tmp_path / "run", settings=quick(schedule={"stages": [StageSettings(0, ["0.*"]), StageSettings(4, ["*"])]})
    ).run()
    assert result.arrived
    LowLossPath(result.folder).directory.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": {"stages": [StageSettings(0, ["nothing*"])]}},
            r"stages\[0\].layers pattern 'nothing\*' matches no layer",
        ),
        ({"schedule": {"stages": [StageSettings(0), StageSettings(3, ["re:("])]}}, r"'re:\(' is no regular expression"),
        (
            {"mode": "m2o-o", "schedule": {"stages": [StageSettings(0), StageSettings(3, ["1.*"])]}},
            r"stages\[1\] moves nothing.*\(1\.\*\)",
        ),
        ({"layers": LayerSettings(keep=["*"])}, r"moves nothing"),
        ({"layers": LayerSettings(keep=["*"]), "schedule": {"kind": "data-flow"}}, "data-flow moves nothing"),
        ({"layers": LayerSettings(compensate=["conv*"])}, r"layers.compensate pattern 'conv\*' matches no layer"),
        ({"schedule": {"kind": "data-flow", "distance": None}}, "schedule data-flow needs schedule.ticks or"),
        ({"mode": "infinity", "schedule": {"kind": "data-flow"}}, "mode infinity .* schedule.ticks"),
        (
            {"mode": "infinity", "schedule": {"stages": [StageSettings(0), StageSettings(None, ["*"], 0.5)]}},
            r"mode infinity .* schedule.stages\[...\].start",
        ),
        ({"schedule": {"stages": [StageSettings(0), StageSettings(None, ["*"])]}}, r"stages\[1\] needs start"),
    ],
)
def test_schedules_that_cannot_work(finder, tmp_path, changes, message) -> None:
    with pytest.raises(LLPFError, match=message) as caught:
        finder(tmp_path / "run", settings=quick(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
