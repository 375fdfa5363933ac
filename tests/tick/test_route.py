"""A tick against move and project done by hand on each layer."""

from __future__ import annotations

import torch
from torch import nn

from llpf_fast import ops
from llpf_fast.flat import FlatParameters
from llpf_fast.ops import Destination
from llpf_fast.tick import GroupStatistics, Route, Rule

LENGTHS = [300, 17, 5000]


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(0.3 * torch.randn(length) for length in LENGTHS)


def setting(**step):
    torch.manual_seed(1)
    flat = FlatParameters(Vectors())
    p, d = flat.data, torch.randn(flat.table.numel) + 0.5
    return flat.table, p, d, Route(flat, Rule(), d, **{"fixed": 0.01, "relative": 0.1, **step})


def parts(table, x):
    return [x[r.offset : r.offset + r.length].double() for r in table.rows]


def test_tick_moves_and_projects_every_layer() -> None:
    table, p, d, route = setting()
    before = parts(table, p.clone())
    route.tick(p)
    for old, new, goal in zip(before, parts(table, p), parts(table, d), strict=True):
        distance = (goal - old).norm()
        moved = old + (0.01 + 0.1 * distance) * (goal - old) / distance
        projected = moved.mean() + torch.sqrt(old.var() / moved.var()) * (moved - moved.mean())
        torch.testing.assert_close(new, projected, rtol=1e-5, atol=1e-6)


def test_project_only_restores_the_variance() -> None:
    table, p, _, route = setting()
    variance = [x.var() for x in parts(table, p.clone())]
    p.mul_(1.3).add_(0.1)
    means = [x.mean() for x in parts(table, p)]
    route.project(p)
    for x, v, m in zip(parts(table, p), variance, means, strict=True):
        torch.testing.assert_close(x.var(), v, rtol=1e-5, atol=0)
        torch.testing.assert_close(x.mean(), m, rtol=1e-4, atol=1e-6)


def test_known_moments_change_no_bit_of_a_projection() -> None:
    table, p, _, route = setting()
    p.mul_(1.3)
    route.enter([True, False, True])
    measured, known = p.clone(), p.clone()
    route.project(measured)
    route.project(known, route.moments(p))
    assert torch.equal(known, measured)
    changed = [not torch.equal(a, b) for a, b in zip(parts(table, p), parts(table, known), strict=True)]
    assert changed == [True, False, True]


def test_ticks_approach_and_never_overshoot() -> None:
    table, p, d, route = setting(relative=2.0)
    route.tick(p)
    on_sphere = d.clone()
    route.project(on_sphere)
    for got, want in zip(parts(table, p), parts(table, on_sphere), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_distances_are_l2_to_every_kind_of_destination() -> None:
    table, p, d, route = setting()
    statistics = GroupStatistics(table)
    toward, alone = route.moments(p), ops.moments(p, None, table.segments, table.chunks, table.scratch())
    radius = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)

    def each(distance):
        return torch.stack(
            [distance(x, y, r) for x, y, r in zip(parts(table, p), parts(table, d), radius, strict=True)]
        )

    def to_variance(x, _, r):
        return ((r / x.var()).sqrt() * (x - x.mean()) - (x - x.mean())).norm()

    for kind, moments, want in (
        (Destination.POINT, toward, each(lambda x, y, _: (x - y).norm())),
        (Destination.ORIGIN, alone, each(lambda x, *_: x.norm())),
        (Destination.MEAN, alone, each(lambda x, *_: (x - x.mean()).norm())),
        (Destination.VARIANCE_SPHERE, alone, each(to_variance)),
        (Destination.NORM_SPHERE, alone, each(lambda x, _, r: (x.norm() - r).abs())),
    ):
        torch.testing.assert_close(statistics.distance(moments, kind, radius), want, rtol=1e-6, atol=0)
