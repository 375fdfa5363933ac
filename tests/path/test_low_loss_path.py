"""``LowLossPath``: a run as a polyline."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.path import LowLossPath, RunDirectory, state_digest


def test_it_is_a_sequence_of_state_dicts(finished, make_state):
    path = llpf_fast.open_path(str(finished))
    assert isinstance(path, LowLossPath)
    assert len(path) == 5
    expected = [state_digest(make_state(i)) for i in range(5)]
    assert [state_digest(path[i]) for i in range(5)] == expected
    assert [state_digest(state) for state in path] == expected
    assert [state_digest(state) for state in path[1:4:2]] == expected[1:4:2]
    assert state_digest(path[-1]) == expected[-1]
    for outside in (5, -6):
        with pytest.raises(IndexError, match="of a path of 5"):
            path[outside]
    assert path.run["start_sha256"] == expected[0]
    assert len(path.metrics()) == 5
    assert path.certificate is None
    assert "5 waypoints" in repr(path)


def test_a_waypoint_loads_into_its_module(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    RunDirectory.create(tmp_path / "run", {}).add_waypoint(0, module.state_dict())
    module.load_state_dict(llpf_fast.open_path(tmp_path / "run")[0])


def test_what_it_gives_is_the_callers_own(finished, make_state):
    path = LowLossPath(finished)
    for give in (lambda: path[2], lambda: path.interpolate(2.0), lambda: path.interpolate(2.5)):
        for tensor in give().values():
            tensor.zero_()
    assert state_digest(path[2]) == state_digest(make_state(2))


def test_lengths_are_distances_over_the_parameters(finished, make_state):
    path = LowLossPath(finished)
    names = ("conv.weight", "conv.bias")
    states = [make_state(i) for i in range(5)]
    expected = [
        math.sqrt(sum(float(((b[n].double() - a[n].double()) ** 2).sum()) for n in names))
        for a, b in itertools.pairwise(states)
    ]
    assert path.lengths() == pytest.approx(expected, rel=1e-14)
    assert path.arc_length() == pytest.approx(sum(expected), rel=1e-14)


def test_lengths_of_close_waypoints_do_not_cancel(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, {"w": torch.full((10_000,), 1.0)})
    run.add_waypoint(1, {"w": torch.full((10_000,), 1.0 + 2**-23)})
    assert LowLossPath(run).lengths() == [100 * 2**-23]


def test_interpolation_is_linear_in_float64(finished, make_state):
    path = LowLossPath(finished)
    a, b = make_state(1), make_state(2)
    between = path.interpolate(1.3)
    t = 1.3 - 1
    for name, value in between.items():
        assert value.dtype == a[name].dtype
        if value.is_floating_point():
            expected = (a[name].double() + t * (b[name].double() - a[name].double())).float()
            assert torch.equal(value, expected)
    assert between["norm.num_batches_tracked"] == 1
    for number in range(5):
        assert state_digest(path.interpolate(number)) == state_digest(make_state(number))
    for outside in (-0.1, 4.1, float("nan"), float("inf")):
        with pytest.raises(LLPFError, match="is not on the path, which goes from 0 to 4"):
            path.interpolate(outside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_interpolation_keeps_the_dtype(tmp_path, dtype):
    run = RunDirectory.create(tmp_path / "run", {})
    for value in (1, 3):
        run.add_waypoint(value, {"w": torch.full((3,), value, dtype=dtype)})
    middle = LowLossPath(run).interpolate(0.5)["w"]
    assert torch.equal(middle, torch.full((3,), 2, dtype=dtype))


def test_a_run_without_waypoints_is_no_path_yet(tmp_path):
    RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(LLPFError, match="has no waypoints yet"):
        llpf_fast.open_path(tmp_path / "run")
