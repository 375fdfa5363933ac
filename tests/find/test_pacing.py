"""Adaptive pacing: the step's length, what is accepted, what a failure takes back, and being stuck."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llpf_fast
from llpf_fast import LLPFError
from llpf_fast.batches import stratified_subset
from llpf_fast.find import CorrectionSettings, PacingSettings, PathFinder, Settings, StageSettings, StepSettings
from llpf_fast.find.pacing import StepController
from llpf_fast.path import LowLossPath

from .conftest import eval_loss, network, quick


def test_short_corrections_lengthen_the_step_and_long_ones_shorten_it() -> None:
    controller = StepController(PacingSettings(target_steps=20), window=5)
    scales = []
    for steps in (5, 20, 21, 40, 41):
        controller.succeeded(steps)
        scales.append(controller.scale)
    assert scales == pytest.approx([1.3, 1.69, 1.69, 1.69, 1.352])


def test_a_window_longer_than_rounds_counts_as_short() -> None:
    controller = StepController(PacingSettings(target_steps=3), window=10)
    controller.succeeded(10)
    assert controller.scale == 1.3


def test_the_step_stays_within_its_bounds() -> None:
    controller = StepController(PacingSettings(max_scale=2.0, min_scale=0.3), window=5)
    for _ in range(9):
        controller.succeeded(1)
    assert controller.scale == 2.0
    for _ in range(40):
        controller.succeeded(1000)
    assert controller.scale == 0.3


def test_the_smallest_step_is_tried_before_giving_up() -> None:
    controller = StepController(PacingSettings(min_scale=0.3), window=5)
    assert (controller.failed(), controller.scale) == (True, 0.5)
    assert (controller.failed(), controller.scale) == (True, 0.3)
    assert not controller.failed()


@pytest.mark.parametrize(
    ("pacing", "message"),
    [
        ({"min_scale": 2.0}, "must enclose 1"),
        ({"max_scale": 0.5}, "must enclose 1"),
        ({"margin": 0.0}, "pacing.margin must be positive"),
        ({"target_steps": 0}, "pacing.target_steps must be positive"),
    ],
)
def test_paces_that_cannot_work(pacing, message) -> None:
    with pytest.raises(LLPFError, match=message):
        quick(pacing={"kind": "adaptive", **pacing})


#: Steps too long for their corrections: some fail.
HASTY = {
    "pacing": {"kind": "adaptive", "margin": 0.4},
    "step": StepSettings(relative=0.25),
    "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=12, lr=0.1),
    "max_ticks": 30,
    "arrival": {"every": 1000},
}


def rolled_back(path: LowLossPath) -> list[int]:
    return [record["tick"] for record in path.metrics() if record.get("rolled_back")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spheres": {"variance": "blend"}},
        {"spheres": {"variance": "shrink-first", "shrink_ticks": 6}},
        {"record": {"every": 3}},
        {
            "schedule": {
                "stages": [StageSettings(start, layers) for start, layers in ((0, ["0.*"]), (8, ["3.*"]), (16, ["*"]))]
            }
        },
        {"mode": "m2o"},
        {"dialect": "authors", "schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(5, ["*"])]}},
    ],
    ids=["start", "blend", "shrink-first", "every third", "stages", "origin", "authors"],
)
def test_every_waypoint_passes_the_screen(finder, rescaled, digits, tmp_path, changes) -> None:
    settings = quick(**{**HASTY, **changes})
    m2m = settings.mode == "m2m"
    path = LowLossPath(finder(tmp_path / "run", destination=rescaled if m2m else None, settings=settings).run().folder)
    assert 0 < len(rolled_back(path)) < 25
    assert len(path) > 4
    chosen = stratified_subset(digits[1], settings.screening.samples)
    screened = tuple(part[chosen] for part in digits)
    limit = settings.threshold * settings.pacing.margin
    ticks = [w.tick for w in path.directory.waypoints()]
    losses = {tick: eval_loss(state, screened) for tick, state in zip(ticks, path, strict=True)}
    assert {tick: loss for tick, loss in losses.items() if loss > limit * (1 + 1e-5)} == {}


def test_no_pacing_accepts_what_adaptive_does_not(finder, digits, tmp_path) -> None:
    """The check above is one that such steps fail without pacing."""
    path = LowLossPath(finder(tmp_path / "run", settings=quick(**{**HASTY, "pacing": {"kind": "fixed"}})).run().folder)
    assert max(eval_loss(state, digits) for state in path) > 0.06


class Loss:
    """Cross-entropy that is NaN in training while ``broken``."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(output, target)
        return loss * math.nan if self.broken and output.requires_grad else loss


def breaking(make: Callable[..., PathFinder], folder: Path, ticks: set[int], settings: Settings, **options: Any):
    """A finder whose training fails at ``ticks``, and what it left after each tick."""
    loss = Loss()
    left: dict[int, tuple[Any, ...]] = {}

    def after(at: llpf_fast.TickProgress) -> None:
        loss.broken = at.tick + 1 in ticks
        correction, optimizer = finder._correction, finder._optimizer
        momentum = correction.momentum_buffer
        left[at.tick] = (
            {name: value.clone() for name, value in finder.flat.state_dict().items()},
            None if momentum is None else momentum.clone(),
            None if optimizer is None else [v.clone() for s in optimizer.state.values() for v in s.values()],
        )

    finder = make(folder, settings=settings, loss_fn=loss, progress=after, **options)
    loss.broken = 1 in ticks
    return finder, left


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b


@pytest.mark.parametrize(
    "options",
    [
        {"correction": CorrectionSettings(threshold=0.05, lr=0.05, momentum=0.9, keep_momentum=True)},
        {"optimizer": lambda ps: torch.optim.AdamW(ps, lr=0.003)},
        {"mode": "m2o", "optimizer": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9)},
        {"schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(4, ["3.*", "5.*"])]}, "dialect": "authors"},
        {"schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(4, ["3.*", "5.*"])]}},
        {"spheres": {"variance": "blend"}},
    ],
    ids=["momentum", "adamw", "origin, sgd", "authors, stages", "stages", "blend"],
)
def test_a_failure_returns_to_the_last_waypoint_bit_for_bit(finder, tmp_path, options) -> None:
    options = dict(options)
    optimizer = options.pop("optimizer", None)
    settings = quick(**{"pacing": {"kind": "adaptive"}, "max_ticks": 9, "arrival": {"every": 1000}, **options})
    bad = {5, 6, 7}  # a stage begins with tick 5
    searching, left = breaking(finder, tmp_path / "run", bad, settings, optimizer=optimizer)
    result = searching.run()
    assert (result.ticks, result.ended) == (9, "max_ticks")
    path = LowLossPath(result.folder)
    path.directory.check()
    assert rolled_back(path) == sorted(bad)
    assert [w.tick for w in path.directory.waypoints()] == [0, 1, 2, 3, 4, 8, 9]
    for tick in bad:
        values, momentum, state = left[tick]
        assert same(values, path[4])  # statistics included
        assert same(momentum, left[4][1])
        assert same(state, left[4][2])
    steps = [record["step"][1] for record in path.metrics()]
    assert steps[5:8] == pytest.approx([steps[4] / 2, steps[4] / 4, steps[4] / 8])


def test_a_failure_of_the_first_tick_returns_to_the_start(finder, endpoints, tmp_path) -> None:
    settings = quick(pacing={"kind": "adaptive"}, max_ticks=3)
    searching, left = breaking(finder, tmp_path / "run", {1, 2}, settings)
    path = LowLossPath(searching.run().folder)
    assert same(left[1][0], endpoints[0])
    assert same(left[2][0], endpoints[0])
    assert [w.tick for w in path.directory.waypoints()] == [0, 3]


@pytest.mark.parametrize("record_every", [1, 4])
def test_stuck_ends_with_a_whole_run(finder, digits, tmp_path, record_every) -> None:
    settings = quick(
        pacing={"kind": "adaptive", "min_scale": 0.2}, arrival={"every": 1000}, record={"every": record_every}
    )
    searching, left = breaking(finder, tmp_path / "run", set(range(7, 100)), settings)
    result = searching.run()
    assert (result.ended, result.arrived) == ("stuck", False)
    path = LowLossPath(result.folder)
    path.directory.check()
    status = path.directory.status
    assert (status["ended"], status["complete"], status["arrived"]) == ("stuck", True, False)
    assert math.isfinite(status["loss"])
    ticks = [w.tick for w in path.directory.waypoints()]
    assert ticks == [0, *range(record_every, 7, record_every), *([6] if 6 % record_every else [])]
    assert same(path[len(path) - 1], left[result.ticks][0])
    assert max(eval_loss(state, digits) for state in path) < 0.15
    again = breaking(finder, tmp_path / "run", set(), settings, resume=True)[0].run()
    assert (again.ended, again.ticks, again.waypoints) == ("stuck", result.ticks, result.waypoints)


def test_corrections_that_never_pass_get_stuck_at_the_start(finder, tmp_path) -> None:
    hopeless = CorrectionSettings(threshold=1e-9, window=1, max_steps=3, lr=100.0)
    settings = quick(pacing={"kind": "adaptive", "min_scale": 0.5}, correction=hopeless)
    result = finder(tmp_path / "run", settings=settings).run()
    assert (result.ended, result.ticks, result.waypoints) == ("stuck", 2, 1)
    LowLossPath(result.folder).directory.check()


def test_find_path_says_that_it_got_stuck(endpoints, digits, tmp_path) -> None:
    hopeless = CorrectionSettings(threshold=1e-9, window=1, max_steps=3, lr=100.0)
    settings = quick(pacing={"kind": "adaptive", "min_scale": 0.5}, correction=hopeless)
    with pytest.raises(LLPFError, match=r"the path got stuck after 2 ticks; .*run: raise the threshold or"):
        llpf_fast.find_path(network(), *endpoints, data=digits, settings=settings, out=tmp_path / "run")
    # Toward the origin a search that gets stuck has gone as far as it can.
    path = llpf_fast.find_path(
        network(), endpoints[0], data=digits, settings=settings, mode="m2o", out=tmp_path / "m2o"
    )
    assert path.directory.status["ended"] == "stuck"


def test_ticks_that_fail_whenever_one_would_be_recorded_leave_no_gap(finder, tmp_path) -> None:
    settings = quick(pacing={"kind": "adaptive"}, max_ticks=13, record={"every": 2}, arrival={"every": 1000})
    searching, _ = breaking(finder, tmp_path / "run", set(range(2, 14, 2)), settings)
    path = LowLossPath(searching.run().folder)
    assert [w.tick for w in path.directory.waypoints()] == [0, 3, 5, 7, 9, 11, 13]


def test_arrival_right_after_a_failure(finder, tmp_path) -> None:
    whole = finder(tmp_path / "whole", settings=quick(arrival={"every": 1}, pacing={"kind": "adaptive"})).run()
    assert whole.arrived
    last = whole.ticks
    searching, _ = breaking(finder, tmp_path / "run", {last}, quick(arrival={"every": 1}, pacing={"kind": "adaptive"}))
    result = searching.run()
    assert result.arrived
    assert result.ticks > last
    path = LowLossPath(result.folder)
    path.directory.check()
    assert rolled_back(path) == [last]
    assert [w.tick for w in path.directory.waypoints()][-2:] == [result.ticks, result.ticks + 1]


def test_a_last_tick_that_fails_arrives_from_the_waypoint_before(finder, tmp_path) -> None:
    whole = finder(tmp_path / "whole", settings=quick(arrival={"every": 1}, pacing={"kind": "adaptive"})).run()
    assert whole.arrived
    settings = quick(arrival={"every": 1000}, pacing={"kind": "adaptive"}, max_ticks=whole.ticks + 1)
    searching, _ = breaking(finder, tmp_path / "run", {whole.ticks + 1}, settings)
    result = searching.run()
    assert (result.arrived, result.ticks) == (True, whole.ticks + 1)
    one, other = LowLossPath(whole.folder), LowLossPath(result.folder)
    other.directory.check()
    assert rolled_back(other) == [whole.ticks + 1]
    assert len(one) == len(other)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
