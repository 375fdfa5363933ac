"""Parameters that do not train are not moved, projected or counted, whatever the rule says of their layer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.flat import FlatParameters
from llpf_fast.ops import Destination, SegmentFlag
from llpf_fast.tick import LayerTreatment, Route, Rule
from llpf_fast.tick.segment_flags import treatments

PAPER = Rule()
AUTHORS = Rule(combine_sum=False, clamp=False, epsilon=1e-4, rescale_normalization=True, rescale_skipped=True)
FROZEN = {"a.weight", "norm.bias", "b.bias"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in FROZEN)


def flat_net(**layout: bool) -> FlatParameters:
    torch.manual_seed(0)
    return FlatParameters(Net().double(), **layout)


def route_of(rule: Rule, flat: FlatParameters, goal: Tensor) -> Route:
    sphere = rule.destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    radius = torch.full((len(flat.table),), torch.nan, dtype=torch.float64)
    radius[[name not in FROZEN for name in flat.table.names]] = 2.0
    return Route(
        flat,
        rule,
        goal if rule.destination is Destination.POINT else None,
        radius if sphere else None,
        fixed=0.01,
        relative=0.1,
    )


def parts(flat: FlatParameters, values: Tensor) -> dict[str, Tensor]:
    return {name: view.clone() for name, view in flat.views(values).items()}


@pytest.mark.parametrize("join_bias", [False, True])
@pytest.mark.parametrize("dialect", [PAPER, AUTHORS])
@pytest.mark.parametrize("destination", list(Destination))
def test_a_tick_leaves_them_bit_for_bit(destination: Destination, dialect: Rule, join_bias: bool) -> None:
    flat = flat_net(join_bias=join_bias)
    rule = replace(dialect, destination=destination, project=destination is Destination.POINT)
    route = route_of(rule, flat, torch.randn_like(flat.data))
    before = parts(flat, flat.data)
    route.tick(flat.data)
    trained = flat.data * 1.5
    waypoint = trained.clone()
    route.project(waypoint, route.moments(trained))
    there = waypoint.clone()
    route.tick(there)
    for name in FROZEN:
        assert torch.equal(parts(flat, flat.data)[name], before[name])
        assert torch.equal(parts(flat, waypoint)[name], 1.5 * before[name])
        assert torch.equal(parts(flat, there)[name], 1.5 * before[name])
        if destination is not Destination.POINT:
            assert torch.equal(parts(flat, route.rest(trained))[name], 1.5 * before[name])
    for name in before.keys() - FROZEN:
        assert not torch.equal(parts(flat, flat.data)[name], before[name])


@pytest.mark.parametrize("join_bias", [False, True])
@pytest.mark.parametrize("destination", [Destination.POINT, Destination.ORIGIN, Destination.MEAN])
def test_distances_are_those_of_the_rest(destination: Destination, join_bias: bool) -> None:
    flat = flat_net(join_bias=join_bias)
    goal = torch.randn_like(flat.data)
    route = route_of(Rule(destination=destination, project=False), flat, goal)
    here, there = parts(flat, flat.data), parts(flat, goal)
    if destination is not Destination.POINT:
        there = {name: v.mean() if destination is Destination.MEAN else 0 * v for name, v in here.items()}
    single = {name: 0.0 if name in FROZEN else float((there[name] - v).norm()) for name, v in here.items()}
    for name, distance in zip(flat.table.names, route.distances(flat.data).tolist(), strict=True):
        group = [n for n in single if join_bias and n.partition(".")[0] == name.partition(".")[0]] or [name]
        assert distance == pytest.approx(math.hypot(*(single[n] for n in group)), rel=1e-12, abs=0)
    assert route.total(route.initial_distance) == pytest.approx(math.hypot(*single.values()), rel=1e-12)


def test_the_others_move_as_they_would_without_them() -> None:
    """A weight whose bias is frozen moves along its direction, by its distance."""
    flat = flat_net(join_bias=True)
    goal = torch.randn_like(flat.data)
    before, there = parts(flat, flat.data), parts(flat, goal)
    route = route_of(Rule(project=False), flat, goal)
    route.tick(flat.data)
    way = there["b.weight"] - before["b.weight"]
    expected = before["b.weight"] + way * (0.01 + 0.1 * float(way.norm())) / float(way.norm())
    torch.testing.assert_close(parts(flat, flat.data)["b.weight"], expected, rtol=1e-12, atol=1e-12)


def test_no_pattern_moves_them() -> None:
    flat = flat_net()
    rule = Rule(project=False, compensate=("a.*",), compensate_twice=("b.*",), layer_norm=LayerTreatment.COMPENSATE)
    treatment = dict(zip(flat.table.names, treatments(rule, flat), strict=True))
    assert {name for name, how in treatment.items() if how is LayerTreatment.KEEP} == FROZEN
    assert treatment["a.bias"] is LayerTreatment.COMPENSATE


def test_rows_of_a_frozen_stack_stay() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2)
    module.in_proj_weight.requires_grad_(False)
    flat = FlatParameters(module, cut_attention=True)
    before = parts(flat, flat.data)
    rule = replace(AUTHORS, values_only=True)
    route = Route(flat, rule, torch.randn_like(flat.data), fixed=0.0, relative=0.1)
    route.tick(flat.data)
    route.project(flat.data)
    assert torch.equal(parts(flat, flat.data)["in_proj_weight"], before["in_proj_weight"])
    assert not torch.equal(parts(flat, flat.data)["out_proj.weight"], before["out_proj.weight"])


def test_they_move_where_that_is_asked_for() -> None:
    flat = flat_net()
    goal = torch.randn_like(flat.data)
    before = parts(flat, flat.data)
    route = route_of(Rule(project=False, move_frozen=True), flat, goal)
    assert route.may_move() == [True] * len(flat.table)
    assert all(float(distance) > 0 for distance in route.initial_distance)
    route.tick(flat.data)
    assert not any(torch.equal(after, before[name]) for name, after in parts(flat, flat.data).items())
    assert route.table.rows[0].flags & SegmentFlag.FROZEN


@pytest.mark.parametrize("destination", [Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE])
def test_a_sphere_that_they_do_not_lie_on_is_refused(destination: Destination) -> None:
    flat = flat_net()
    weight = flat.module.a.weight.detach()  # type: ignore[union-attr]
    now = float(weight.var() if destination is Destination.VARIANCE_SPHERE else weight.norm())
    radius = torch.full((len(flat.table),), torch.nan, dtype=torch.float64)
    radius[flat.table.names.index("a.weight")] = now * 1.001
    rule = Rule(destination=destination, project=False)
    with pytest.raises(LLPFError, match=r"layer a\.weight is frozen .* set layers\.move_frozen: true, or leave it out"):
        Route(flat, rule, None, radius, fixed=0.0, relative=0.1)
    Route(flat, replace(rule, keep=("a.weight",)), None, radius, fixed=0.0, relative=0.1)
    Route(flat, replace(rule, move_frozen=True), None, radius, fixed=0.0, relative=0.1)
    radius[flat.table.names.index("a.weight")] = now
    radius[flat.table.names.index("a.bias")] = 1.0
    route = Route(flat, rule, None, radius, fixed=0.0, relative=0.1)
    assert [name for name, moves in zip(flat.table.names, route.may_move(), strict=True) if moves] == ["a.bias"]
    assert float(route.initial_distance[flat.table.names.index("a.weight")]) == 0
