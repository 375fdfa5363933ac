"""The states between two waypoints, of the certificate and of a LowLossPath."""

from __future__ import annotations

import math

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path import LowLossPath, RunDirectory
from llpf_fast.path.polyline import Polyline, Position, distance, interpolate

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (torch.complex64, torch.int64, torch.int8, torch.uint8, torch.bool)


def states():
    """Two waypoints with a tensor of every dtype that changes, and one that does not."""
    generator = torch.Generator().manual_seed(0)

    def drawn(dtype):
        if dtype is torch.bool:
            return torch.randint(2, (3, 2), generator=generator).bool()
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            return torch.randn(3, 2, generator=generator, dtype=wide).to(dtype)
        return torch.randint(100, (3, 2), generator=generator).to(dtype)

    a, b = ({str(dtype): drawn(dtype) for dtype in FLOATS + OTHERS} for _ in range(2))
    for name in list(a):
        a[f"{name} fixed"] = a[name]
        b[f"{name} fixed"] = a[name].clone()
    for state in (a, b):
        state["mask"] = torch.tensor([0.0, -math.inf, math.nan])
    for state, value in ((a, 1.0), (b, 2.0)):
        state["part"] = torch.tensor([-math.inf, value, 5.0, math.nan])
    a["empty"] = b["empty"] = torch.zeros(0)
    return a, b


def test_values_that_do_not_change_are_passed_through():
    a, b = states()
    between = interpolate(a, b, 0.3)
    for name in a:
        if name.endswith("fixed") or name in ("mask", "empty"):
            assert between[name] is a[name]
    assert between["part"][:3].tolist() == [-math.inf, 1.3, 5.0]
    assert between["part"][3].isnan()
    assert Polyline([a, b]).changes(None)[0].broken == ()


@pytest.mark.parametrize("t", [0.3, 0.75])
def test_floating_and_complex_tensors_are_linear(t):
    a, b = states()
    between = interpolate(a, b, t)
    for dtype in (*FLOATS, torch.complex64):
        wide = torch.complex128 if dtype.is_complex else torch.float64
        left, right = a[str(dtype)].to(wide), b[str(dtype)].to(wide)
        assert between[str(dtype)].dtype == wide
        assert torch.equal(between[str(dtype)], left + t * (right - left))
    for dtype in OTHERS[1:]:
        assert torch.equal(between[str(dtype)], a[str(dtype)])


def test_the_certificate_and_the_path_agree(tmp_path):
    a, b = states()
    run = RunDirectory.create(tmp_path / "run", {})
    for tick, state in enumerate((a, b)):
        run.add_waypoint(tick, state)
    path = LowLossPath(run).interpolate(0.3)
    certified = Polyline(run.waypoints()).state(Position(0, 0.3))
    assert path.keys() == certified.keys() == a.keys()
    for name, value in certified.items():
        assert path[name].dtype == a[name].dtype
        assert torch.equal(path[name].nan_to_num(), value.to(a[name].dtype).nan_to_num())
    for value in path.values():
        value.zero_()
    assert Polyline(run.waypoints()).state(Position(0, 0.0))["mask"].isnan().any()


def test_distances_cover_all_changes():
    a, b = states()
    names = {*map(str, FLOATS), "torch.complex64"}
    expected = sum(
        float((b[name].to(torch.complex128) - a[name].to(torch.complex128)).abs().square().sum()) for name in names
    )
    assert distance(a, b, None) == pytest.approx(math.sqrt(expected + 1))
    assert distance(a, b, names) == pytest.approx(math.sqrt(expected))
    assert distance(a, b, {"mask", "torch.int64"}) == 0


def test_a_path_of_complex_tensors_has_a_length(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    for tick, value in enumerate((0j, 3 + 4j)):
        run.add_waypoint(tick, {"w": torch.tensor([value]), "bn.running_mean": torch.tensor([100.0 * tick])})
    assert LowLossPath(run).lengths() == [5]


def test_tensors_that_change_their_form_are_errors(tmp_path):
    with pytest.raises(LLPFError, match=r"the tensor w has shape \[1\] in the first state and \[2\] in the second"):
        interpolate({"w": torch.zeros(1)}, {"w": torch.zeros(2)}, 0.5)
    run = RunDirectory.create(tmp_path / "run", {})
    for tick, dtype in enumerate((torch.float32, torch.float64)):
        run.add_waypoint(tick, {"w": torch.zeros(1, dtype=dtype)})
    path = LowLossPath(run)
    for call in (lambda: path.interpolate(0.5), path.lengths):
        with pytest.raises(
            LLPFError, match=r"w has dtype torch\.float32 in waypoint 0 and torch\.float64 in waypoint 1"
        ):
            call()


def test_zeros_of_both_signs_are_a_change():
    change = Polyline([{"w": torch.tensor(0.0)}, {"w": torch.tensor(-0.0)}]).changes(None)[0]
    assert (change.any, change.parameters, change.broken) == (True, 0, ())
