"""A prepared tick against move and project done by hand on each layer."""

from __future__ import annotations

import torch

from llpf_fast import ops
from llpf_fast.flat import SegmentTable
from llpf_fast.ops import Destination
from llpf_fast.tick import GroupStatistics, Mover

LENGTHS = [300, 17, 5000]


def setting(**step):
    torch.manual_seed(1)
    table = SegmentTable.from_lengths(LENGTHS)
    p, d = torch.randn(table.numel) * 0.3, torch.randn(table.numel) + 0.5
    moments = ops.moments(p, None, table.segments, table.chunks, table.scratch())
    mover = Mover(table, GroupStatistics(table).variance(moments), d, **{"fixed": 0.01, "relative": 0.1, **step})
    return table, p, d, mover


def parts(table, x):
    return [x[r.offset : r.offset + r.length].double() for r in table.rows]


def test_tick_moves_and_projects_every_layer() -> None:
    table, p, d, mover = setting()
    before = parts(table, p.clone())
    mover.tick(p, project_first=False)
    for old, new, goal in zip(before, parts(table, p), parts(table, d), strict=True):
        distance = (goal - old).norm()
        moved = old + (0.01 + 0.1 * distance) * (goal - old) / distance
        projected = moved.mean() + torch.sqrt(old.var() / moved.var()) * (moved - moved.mean())
        torch.testing.assert_close(new, projected, rtol=1e-5, atol=1e-6)


def test_project_only_restores_the_variance() -> None:
    table, p, _, mover = setting()
    variance = [x.var() for x in parts(table, p.clone())]
    p.mul_(1.3).add_(0.1)
    means = [x.mean() for x in parts(table, p)]
    mover.project(p)
    for x, v, m in zip(parts(table, p), variance, means, strict=True):
        torch.testing.assert_close(x.var(), v, rtol=1e-5, atol=0)
        torch.testing.assert_close(x.mean(), m, rtol=1e-4, atol=1e-6)


def test_waypoint_is_the_projected_point_before_the_move() -> None:
    table, p, _, mover = setting()
    p.mul_(1.3)
    projected = p.clone()
    mover.project(projected)
    waypoint = torch.zeros_like(p)
    mover.tick(p, project_first=True, waypoint=waypoint)
    for got, want in zip(parts(table, waypoint), parts(table, projected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_ticks_approach_and_never_overshoot() -> None:
    table, p, d, mover = setting(relative=2.0)
    mover.tick(p, project_first=False)
    on_sphere = d.clone()
    mover.project(on_sphere)
    for got, want in zip(parts(table, p), parts(table, on_sphere), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_distances_are_l2_to_every_kind_of_destination() -> None:
    table, p, d, mover = setting()
    spread = GroupStatistics(table)
    toward, alone = mover.moments(p), ops.moments(p, None, table.segments, table.chunks, table.scratch())
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
        torch.testing.assert_close(spread.distance(moments, kind, radius), want, rtol=1e-6, atol=0)
