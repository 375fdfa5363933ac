"""Corrections that leave the mean of their points, and points that are given up early."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llpf_fast import LLPFError
from llpf_fast.correct import CorrectionResult
from llpf_fast.find import CorrectionSettings
from llpf_fast.find.build import max_steps_of_a_run
from llpf_fast.find.pacing import IterateAverage
from llpf_fast.find.requests import EvalRequest, TrainRequest
from llpf_fast.find.screening import ScreeningEvaluator
from llpf_fast.find.task import make_task
from llpf_fast.flat import FlatParameters
from llpf_fast.path import LowLossPath

from .conftest import changed, eval_loss, network, quick

AVERAGED = {
    "pacing": {"kind": "adaptive", "iterate_average": 3.0},
    "correction": CorrectionSettings(threshold=0.1, window=5, max_steps=200, lr=0.1),
}


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_the_mean_weighs_point_j_as_the_rising_factorial_of_j(power) -> None:
    points = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = IterateAverage(points[0], power)
    for i, point in enumerate(points):
        left = average.add(point, CorrectionResult(1, float(i), True), threshold=3.5)
    # Unrolled, the shares are proportional to Gamma(j + power) / Gamma(j) (Shamir and Zhang 2013, section 4).
    weights = torch.tensor([math.gamma(j + power) / math.gamma(j) for j in range(1, 8)], dtype=torch.float64)
    weights /= weights.sum()
    torch.testing.assert_close(average.values, weights @ points)
    mean = float(weights @ torch.arange(7.0, dtype=torch.float64))
    assert left.loss == pytest.approx(mean)
    assert left.met == (mean <= 3.5)
    average.clear()
    average.add(points[3], CorrectionResult(1, 1.0, True), threshold=0.5)
    assert torch.equal(average.values, points[3])


def test_without_a_power_nothing_is_held() -> None:
    assert IterateAverage(torch.zeros(3), None).values is None


def requests(searching: Any, most: int) -> tuple[list[Any], list[Tensor]]:
    """The first requests of a search, and the training point after each correction."""
    asked, points, steps = [], [], searching._search.steps()
    request = next(steps)
    while len(asked) < most:
        # The values asked about may lie in a buffer that is used again.
        asked.append(replace(request, values=request.values.clone()) if isinstance(request, EvalRequest) else request)
        if isinstance(request, TrainRequest):
            answer: Any = searching._correct(request)
            points.append(searching.flat.data.clone())
        else:
            answer = searching._screening.loss(request.values, searching.flat.buffers(), request.stop_above)
        try:
            request = steps.send(answer)
        except StopIteration:
            break
    return asked, points


def test_a_correction_is_windows_and_what_is_judged_and_left_is_their_mean(finder, tmp_path) -> None:
    settings = quick(**{**AVERAGED, "step": replace(quick().step, relative=0.4), "spheres": {"variance": "start"}})
    settings = settings.changed(pacing={"iterate_average": 3.0, "margin": 0.3})
    searching = finder(tmp_path / "run", settings=settings)
    asked, points = requests(searching, 12)
    assert max_steps_of_a_run(settings) == 5
    trained = [request for request in asked if isinstance(request, TrainRequest)]
    assert [request.first_round for request in trained] == list(range(0, 5 * len(trained), 5))
    first = next(i for i, request in enumerate(asked) if isinstance(request, EvalRequest))
    assert first >= 3  # three windows at least, or the check below says nothing
    assert [request.continued for request in trained[:first]] == [False] + [True] * (first - 1)
    expected = IterateAverage(points[0], 3.0)
    for point in points[:first]:
        expected.add(point, CorrectionResult(5, 0.0, True), 1.0)
    here = expected.values
    searching._search._phases.main.project(here)
    torch.testing.assert_close(asked[first].values, here)
    assert not torch.allclose(asked[first].values, points[first - 1], atol=1e-4)


def test_the_path_arrives_and_every_waypoint_is_low(finder, digits, tmp_path) -> None:
    settings = quick(**AVERAGED)
    result = finder(tmp_path / "run", settings=settings).run()
    assert result.arrived
    assert result.sgd_steps % 5 == 0
    path = LowLossPath(result.folder)
    assert max(eval_loss(state, digits) for state in path) < 0.15
    again = LowLossPath(finder(tmp_path / "again", settings=settings).run().folder)
    assert len(again) == len(path)
    for i, (a, b) in enumerate(zip(path, again, strict=True)):
        assert not changed(a, b), i


def test_a_resume_repeats_the_run_bit_for_bit(finder, tmp_path) -> None:
    settings = quick(**AVERAGED, record={"checkpoint_every": 2})
    whole = LowLossPath(finder(tmp_path / "whole", settings=settings).run().folder)
    assert len(whole) > 6

    def stop(at: Any) -> None:
        if at.tick == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finder(tmp_path / "run", settings=settings, progress=stop).run()
    resumed = LowLossPath(finder(tmp_path / "run", settings=settings, resume=True).run().folder)
    assert len(whole) == len(resumed)
    for a, b in zip(whole, resumed, strict=True):
        assert not changed(a, b)


def test_a_failed_correction_goes_back_to_the_waypoint(finder, endpoints, tmp_path) -> None:
    hopeless = CorrectionSettings(threshold=1e-9, window=2, max_steps=6, lr=0.1)
    settings = quick(**{**AVERAGED, "correction": hopeless}, threshold=0.15)
    settings = settings.changed(pacing={"iterate_average": 1.0, "min_scale": 0.5, "margin": 1e-6})
    searching = finder(tmp_path / "run", settings=settings)
    result = searching.run()
    assert (result.ended, result.ticks, result.sgd_steps) == ("stuck", 2, 12)
    assert all(torch.equal(value, endpoints[0][name]) for name, value in searching.flat.state_dict().items())


def test_off_is_todays_search_and_ignored_without_pacing(finder, tmp_path) -> None:
    settings = quick(pacing={"iterate_average": 3.0, "early_reject": 1.1})
    assert max_steps_of_a_run(settings) == settings.correction.max_steps
    without = finder(tmp_path / "without", settings=quick()).run()
    with_average = finder(tmp_path / "ignored", settings=settings).run()
    assert (without.ticks, without.sgd_steps) == (with_average.ticks, with_average.sgd_steps)


def test_a_glance_gives_a_bad_point_up_and_takes_all_images_of_a_good_one(digits) -> None:
    batches = []

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        batches.append(len(target))
        return torch.tensor(0.2 if len(batches) == 1 else 0.1)

    x, y = digits
    parts = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 400, 100)]
    screen = ScreeningEvaluator(network(), make_task(quick(), network(), parts, loss_fn, torch.device("cpu")))
    point = torch.zeros_like(FlatParameters(network()).data)
    assert screen.loss(point, {}, stop_above=0.19) == pytest.approx(0.2)
    assert len(batches) == 1
    batches.clear()
    assert screen.loss(point, {}, stop_above=0.21) == pytest.approx(0.125)
    assert len(batches) == 4


def test_the_search_gives_up_at_the_multiple_of_what_a_point_may_have(finder, tmp_path) -> None:
    settings = quick(**AVERAGED).changed(pacing={"early_reject": 1.5, "margin": 0.6})
    asked, _ = requests(finder(tmp_path / "run", settings=settings), 30)
    stops = {round(request.stop_above, 9) for request in asked if isinstance(request, EvalRequest)}
    assert 0.15 * 0.6 * 1.5 in stops
    settings = settings.changed(pacing={"early_reject": None})
    asked, _ = requests(finder(tmp_path / "never", settings=settings), 30)
    assert {request.stop_above for request in asked if isinstance(request, EvalRequest)} == {math.inf}


@pytest.mark.parametrize(
    ("key", "value"), [("iterate_average", -1.0), ("iterate_average", math.inf), ("early_reject", 0.0)]
)
def test_values_that_cannot_work_are_refused(key, value) -> None:
    with pytest.raises(LLPFError, match=f"pacing.{key} must"):
        quick(pacing={"kind": "adaptive", key: value})
