"""The plane through three networks, on a bowl whose loss is known everywhere: off the plane too."""

from __future__ import annotations

import csv
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from llpf_fast.analysis.networks import Networks
from llpf_fast.analysis.plane import COLUMNS, Frame, farthest_from_line, loss_on_plane
from llpf_fast.analysis.trajectory import Trajectory
from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory
from llpf_fast.report.plane import draw_plane
from llpf_fast.verify import Evaluation


def point(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


A, B, C = point(1, 0, 0, 0), point(0, 2, 0, 0), point(0, 0, 0, 3)


def bowl(state):
    """Loss |w|^2 and, so that shadows differ, ten times what lies along the third axis; not a number far out."""
    w = state["w"]
    loss = float(w.square().sum() + 10 * w[2].square())
    return Evaluation(math.nan if loss > 30 else loss, None, 0.5, 7, int(loss > 30))


@pytest.fixture
def networks():
    return Networks([A, B, C], ["A", "B", "C"])


@pytest.fixture
def path(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    for number, t in enumerate(torch.linspace(0, 1, 5).tolist()):
        run.add_waypoint(number, {"w": torch.lerp(A["w"], B["w"], t) + 4 * t * (1 - t) * point(0, 0, 2, 0)["w"]})
    return Trajectory(run)


def test_coordinates_are_distances(networks):
    frame = Frame(networks)
    for (i, p), (j, q) in zip(enumerate((A, B, C)), enumerate((B, C, A)), strict=True):
        apart = np.linalg.norm(frame.corners[i] - frame.corners[(j + 1) % 3])
        assert apart == pytest.approx(float((p["w"] - q["w"]).norm()), rel=1e-12)
    for state, corner in zip((A, B, C), frame.corners, strict=True):
        x, y, away = frame.project(state)
        np.testing.assert_allclose([x, y, away], [*corner, 0], atol=1e-12)
        assert torch.equal(frame.state(*corner)["w"], state["w"])


def test_projection_is_the_nearest_point(networks):
    frame = Frame(networks)
    there = point(0.4, -1, 2, 0.3)
    x, y, away = frame.project(there)
    foot = frame.state(x, y)["w"]
    assert float((there["w"] - foot).norm()) == pytest.approx(away, rel=1e-12)
    for dx, dy in ((0.1, 0), (0, 0.1), (-0.1, 0.1)):
        assert float((there["w"] - frame.state(x + dx, y + dy)["w"]).norm()) > away


def test_grid_and_shadow_hold_the_bowls_own_values(networks, path):
    calls = []
    seen = []

    def evaluate(state):
        calls.append(state)
        return bowl(state)

    plane = loss_on_plane(
        evaluate, networks, path=path, resolution=7, margin=0.3, progress=lambda *where: seen.append(where)
    )
    frame = Frame(networks)
    for j, y in enumerate(plane.y):
        for i, x in enumerate(plane.x):
            np.testing.assert_equal(plane.loss[j, i], bowl(frame.state(x, y)).loss)
    np.testing.assert_allclose(plane.corner_losses, [1, 4, 9])
    projected = plane.path
    np.testing.assert_allclose(projected.distances, [0, 1.5, 2, 1.5, 0], atol=1e-12)
    line = [bowl({"w": torch.lerp(A["w"], B["w"], t)}).loss for t in (0, 0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(projected.projected_loss, line, atol=1e-9)
    assert projected.loss[1] == pytest.approx(line[1] + 11 * 1.5**2)
    assert math.isnan(projected.loss[2])
    assert len(calls) == 49 + 3 + 10 == seen[-1][0] == seen[-1][1]
    assert plane.x[0] < 0 < plane.corners[1, 0] < plane.x[-1]


def test_figures_mark_gaps_and_name_the_projection(networks, path, tmp_path):
    plane = loss_on_plane(bowl, networks, path=path, resolution=9, margin=1.0)
    assert 0 < plane.gaps < 81
    pictures = draw_plane(plane, tmp_path)
    assert [picture.name for picture in pictures] == ["plane.png", "plane-surface.png"]
    texts = " ".join(
        element.text or ""
        for element in ElementTree.parse(tmp_path / "plane.svg").iter("{http://www.w3.org/2000/svg}text")
    )
    assert f"loss not finite ({plane.gaps} grid points)" in texts
    assert "projection of the path run, not the path" in texts
    assert "of the waypoints" in texts
    rows = list(csv.DictReader((tmp_path / "plane.csv").open()))
    assert list(rows[0]) == list(COLUMNS)
    assert sum(row["kind"] == "grid" for row in rows) == 81
    assert sum(row["loss_in_plane"] == "nan" for row in rows if row["kind"] == "grid") == plane.gaps
    assert [row["true_loss"] for row in rows if row["kind"] == "waypoint"][2] == "nan"
    assert all((tmp_path / f"{stem}.svg").exists() for stem in ("plane", "plane-surface"))


def test_nothing_finite_at_all(networks, tmp_path):
    plane = loss_on_plane(lambda state: Evaluation(math.nan, None, None, 1, 1), networks, resolution=3)
    assert plane.gaps == 9
    assert len(draw_plane(plane, tmp_path)) == 2


def test_the_farthest_waypoint(path):
    assert farthest_from_line(path) == 2


def test_refusals(networks, path, tmp_path):
    def of(*states, names=("one", "two", "three")):
        return Networks(list(states), list(names[: len(states)]))

    with pytest.raises(LLPFError, match="three points, 2 are given"):
        Frame(of(A, B))
    with pytest.raises(LLPFError, match="one and three are the same point"):
        Frame(of(A, B, A))
    with pytest.raises(LLPFError, match="one straight line"):
        Frame(of(A, B, {"w": 3 * B["w"] - 2 * A["w"]}))
    with pytest.raises(LLPFError, match="resolution"):
        loss_on_plane(bowl, networks, resolution=1)
    small = [{"w": torch.tensor(v)} for v in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0])]
    with pytest.raises(LLPFError, match=r"another architecture.*differs in w"):
        loss_on_plane(bowl, of(*small), path=path, resolution=2)
    straight = RunDirectory.create(tmp_path / "straight", {})
    for number in range(3):
        straight.add_waypoint(number, point(number, 0, 0, 0))
    with pytest.raises(LLPFError, match="straight line"):
        farthest_from_line(Trajectory(straight))
