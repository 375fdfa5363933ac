"""Radial widths against quadratics and toys, where they are known exactly."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llpf_fast.analysis.networks import Networks
from llpf_fast.analysis.problem import Problem
from llpf_fast.analysis.toy_landscapes import Hyperbola, Landscape, Wedges, landscape_loss, landscape_samples
from llpf_fast.analysis.width_sweep import Training, train_network, width_sweep
from llpf_fast.analysis.widths import (
    RadialRule,
    WidthSettings,
    equally_spaced,
    measure_along_path,
    measure_width,
    measure_widths,
    radial_width,
    random_direction,
)
from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluator

EXACT = RadialRule(tolerance=1e-12)


class Bowl(Landscape):
    """L = 0.02 + p^T H p / 2."""

    def __init__(self, hessian, point=None):
        super().__init__()
        self.register_buffer("hessian", hessian, persistent=False)
        self.point = nn.Parameter(torch.zeros(len(hessian), dtype=torch.float64) if point is None else point)

    def value(self):
        return 0.02 + self.point @ self.hessian @ self.point / 2


def hessian(size=6, seed=0):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def of(module, state=None):
    networks = Networks([dict(module.state_dict()) if state is None else state], ["here"], module)
    return networks, Evaluator(module, landscape_loss, *landscape_samples(), dtype=torch.float64)


class TestRadius:
    def test_quadratic_bowl(self):
        """r = sqrt(2 (threshold - L0) / u^T H u)."""
        bowl = Bowl(hessian())
        networks, evaluate = of(bowl)
        settings = WidthSettings(threshold=0.5, directions=8, seed=3, rule=EXACT)
        width = measure_width(networks, networks[0], evaluate, settings)
        for number, radius in enumerate(width.radii):
            u = random_direction(networks, networks[0], "gaussian", 3, number)
            assert float(u.norm()) == pytest.approx(1.0)
            assert radius == pytest.approx(math.sqrt(2 * 0.48 / float(u @ bowl.hessian @ u)), rel=1e-11)
        assert width.median == pytest.approx(sorted(width.radii)[3] / 2 + sorted(width.radii)[4] / 2)

    @pytest.mark.parametrize("angle", [0.4, 1.3, 2.5, 5.5])
    def test_hyperbola(self, angle):
        u = (math.cos(angle), math.sin(angle))

        def loss(r):
            return ((2.0 + r * u[0]) * (0.5 + r * u[1]) - 1) ** 2 / 2

        width = radial_width(loss, 0.1, rule=EXACT)
        assert width.radius == pytest.approx(Hyperbola.radial_width(2.0, u, 0.1), rel=1e-11)

    def test_wedge(self):
        """From a point on the wedge: (f^-1(threshold) + thickness) / |part of u across|."""
        module = Wedges(torch.tensor([3.0, 0.0, 0.0]).double(), [torch.eye(3).double()[:, :1]], thickness=0.25)
        networks, evaluate = of(module)
        width = measure_width(networks, networks[0], evaluate, WidthSettings(threshold=0.09, directions=4, rule=EXACT))
        for number, radius in enumerate(width.radii):
            u = random_direction(networks, networks[0], "gaussian", 0, number)
            assert radius == pytest.approx((0.3 + 0.25) / float(u[1:].norm()), rel=1e-9)

    def test_above_own_loss(self):
        bowl = Bowl(torch.eye(2).double(), torch.tensor([0.0, 1.0]).double())
        networks, evaluate = of(bowl)
        settings = WidthSettings(threshold=0.3, relative=True, directions=1, rule=EXACT)
        width = measure_width(networks, networks[0], evaluate, settings)
        assert width.threshold == pytest.approx(0.52 + 0.3)
        u = random_direction(networks, networks[0], "gaussian", 0, 0)
        r = width.radii[0]
        assert float((bowl.point.detach() + r * u).square().sum()) / 2 == pytest.approx(0.8)

    def test_no_crossing_is_open_not_zero(self):
        width = radial_width(lambda r: 0.01, 0.1, scale=2.0, rule=RadialRule(largest=5.0))
        assert math.isinf(width.radius)
        assert width.searched_to == 10.0

    def test_the_first_of_two_crossings(self):
        width = radial_width(lambda r: 1.0 if 1.0 < r < 1.5 or r > 9 else 0.0, 0.5)
        assert width.radius == pytest.approx(1.0, rel=1e-3)

    def test_nan_on_the_ray_ends_it_and_is_marked(self):
        width = radial_width(lambda r: math.nan if r > 0.7 else 0.0, 0.5)
        assert width.radius == pytest.approx(0.7, rel=1e-3)
        assert width.not_finite

    @pytest.mark.parametrize(
        ("loss", "threshold", "message"),
        [
            (lambda r: 0.2, 0.1, "above the threshold"),
            (lambda r: math.nan, 0.1, "loss is nan"),
            (lambda r: 0.0, math.nan, "finite number"),
            (lambda r: 0.0, math.inf, "finite number"),
        ],
    )
    def test_bad_input(self, loss, threshold, message):
        with pytest.raises(LLPFError, match=message):
            radial_width(loss, threshold)

    @pytest.mark.parametrize("rule", [{"growth": 1.0}, {"first": 0.0}, {"first": 20.0}, {"tolerance": 0.0}])
    def test_bad_rule(self, rule):
        with pytest.raises(LLPFError, match="a ray needs"):
            radial_width(lambda r: r, 1.0, rule=RadialRule(**rule))


class TestDirections:
    def networks(self):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
        return Networks([module.state_dict()], module=module)

    def test_filters_keep_their_norms_and_vectors_stay(self):
        networks = self.networks()
        u = random_direction(networks, networks[0], "filter", 1, 0)
        moved = networks.unflatten(u)
        weight, step = networks[0]["0.weight"].double().flatten(1), moved["0.weight"].flatten(1)
        ratio = step.norm(dim=1) / weight.norm(dim=1)
        assert ratio.std() < 1e-12 * ratio.mean()
        rows = moved["3.weight"].norm(dim=1) / networks[0]["3.weight"].double().norm(dim=1)
        assert torch.allclose(rows, ratio[0].expand(2))
        assert all(not moved[name].any() for name in ("0.bias", "1.weight", "1.bias", "3.bias"))
        assert float(u.norm()) == pytest.approx(1.0)

    def test_across(self):
        networks = self.networks()
        tangent = torch.randn(networks.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        for law in ("gaussian", "filter"):
            assert abs(float(random_direction(networks, networks[0], law, 1, 0, across=tangent) @ tangent)) < 1e-10

    def test_repeats_and_differs(self):
        networks = self.networks()
        draw = lambda seed, number: random_direction(networks, networks[0], "gaussian", seed, number)
        assert torch.equal(draw(1, 0), draw(1, 0))
        assert abs(float(draw(1, 0) @ draw(1, 1))) < 0.6
        assert not torch.equal(draw(1, 0), draw(2, 0))

    def test_no_filters_is_no_direction(self):
        networks, evaluate = of(Bowl(hessian()))
        with pytest.raises(LLPFError, match="length 0"):
            measure_width(networks, networks[0], evaluate, WidthSettings(law="filter"))

    def test_unknown_law(self):
        networks = self.networks()
        with pytest.raises(LLPFError, match="gaussian"):
            random_direction(networks, networks[0], "gausian", 0, 0)

    def test_constant_path_is_no_direction(self):
        networks = self.networks()
        with pytest.raises(LLPFError, match="path's direction has length 0"):
            random_direction(networks, networks[0], "gaussian", 0, 0, across=torch.zeros(networks.size))


class Polyline:
    """What measure_along_path asks of a path."""

    folder = "a path"

    def __init__(self, points):
        self.points = [torch.tensor(point, dtype=torch.float64) for point in points]

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return {"point": self.points[index]}

    def lengths(self):
        return [float((b - a).norm()) for a, b in zip(self.points, self.points[1:], strict=False)]

    def interpolate(self, position):
        segment = min(int(position), len(self) - 2)
        a, b = self.points[segment], self.points[segment + 1]
        return {"point": a + (position - segment) * (b - a)}


class TestAlongAPath:
    def test_along_and_across_a_valley(self):
        """H = diag(0, 4, 4), the path along the first axis: nothing along it, sqrt(2 * 0.08 / 4) across."""
        module = Bowl(torch.diag(torch.tensor([0.0, 4.0, 4.0])).double())
        networks, evaluate = of(module)
        path = Polyline([(1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (5.0, 0.0, 0.0)])
        told = []
        widths = measure_along_path(
            networks,
            path,
            evaluate,
            WidthSettings(threshold=0.1, directions=3, rule=EXACT),
            points=5,
            progress=lambda *x: told.append(x),
        )
        assert [each.position for each in widths] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert [each.waypoint for each in widths] == pytest.approx([0.0, 1.0, 4 / 3, 5 / 3, 2.0])
        for each in widths:
            assert each.width.radii == pytest.approx([math.sqrt(2 * 0.08 / 4)] * 3)
            assert each.width.along == (math.inf, math.inf)
        assert told[-1][:2] == (25, 25)

    def test_along_a_slope(self):
        module = Bowl(torch.eye(2).double())
        networks, evaluate = of(module)
        settings = WidthSettings(threshold=0.52, directions=1, rule=EXACT)
        widths = measure_along_path(networks, Polyline([(0.5, 0.0), (-0.5, 0.0)]), evaluate, settings, points=2)
        assert widths[0].width.along == pytest.approx((1.5, 0.5))
        assert widths[1].width.along == pytest.approx((0.5, 1.5))

    def test_places_skip_empty_segments(self):
        assert equally_spaced([1.0, 0.0, 1.0], 3) == [(0, 0.0), (2, 0.0), (2, 1.0)]
        assert equally_spaced([1.0, 0.0], 2) == [(0, 0.0), (0, 1.0)]

    @pytest.mark.parametrize(
        ("points", "threshold", "count", "message"),
        [
            ([(0.0, 0.0)], 0.1, 3, "2 or more"),
            ([(0.0, 0.0), (0.0, 0.0)], 0.1, 3, "alike"),
            ([(0.0, 0.0), (1.0, 0.0)], 0.1, 1, "2 points or more"),
            ([(0.0, 0.0), (1.0, 0.0)], 0.1, 3, "waypoint 0.5: .* above the threshold"),
        ],
    )
    def test_bad_input(self, points, threshold, count, message):
        networks, evaluate = of(Bowl(torch.eye(2).double()))
        with pytest.raises(LLPFError, match=message):
            measure_along_path(networks, Polyline(points), evaluate, WidthSettings(threshold=threshold), points=count)


def blobs(width=8, cache=None):
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 4, generator=draws)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    return Problem(network(width), F.cross_entropy, train=(inputs, targets), test=(inputs, targets), cache=cache)


def network(width=8):
    return nn.Sequential(nn.Linear(4, width or 8), nn.ReLU(), nn.Linear(width or 8, 2))


class TestSweep:
    BASE = Training(lr=0.1, batch_size=16, epochs=3)

    def test_cells_trends_and_equal_trainings_once(self, tmp_path):
        axes = {"lr": [0.05, 0.1], "batch_size": [16, 64], "weight_decay": [0.0, 0.01], "width": [8, 16]}
        settings = WidthSettings(threshold=1.0, directions=2)
        told = []
        sweep = width_sweep(
            lambda width: blobs(width, tmp_path),
            network,
            axes,
            self.BASE,
            settings,
            seeds=(0, 1),
            matched_loss=0.65,
            progress=lambda *x: told.append(x),
        )
        assert len(sweep.cells) == 16
        assert told[-1][:2] == (16, 16)
        by_cell = {(c.axis, c.value, c.seed): c for c in sweep.cells}
        # The base itself is on three axes (its width is the network's default, None, so not on that one).
        assert by_cell["lr", 0.1, 0].final == by_cell["batch_size", 16, 0].final
        assert by_cell["lr", 0.1, 0].final != by_cell["lr", 0.05, 0].final
        for cell in sweep.cells:
            assert cell.final is not None
            assert cell.final.loss < 1.0
            if cell.matched is not None:
                assert cell.matched.loss <= 0.65
        assert any(cell.matched is not None for cell in sweep.cells)
        rows = sweep.summary()
        assert [(row["axis"], row["value"]) for row in rows][:3] == [("lr", 0.05), ("lr", 0.1), ("batch_size", 16)]
        base_widths = [by_cell["lr", 0.1, seed].final.median for seed in (0, 1)]
        assert rows[1]["final_width"] == pytest.approx(sum(base_widths) / 2)
        assert "uniform on the unit sphere" in sweep.law

        again = width_sweep(
            lambda width: blobs(width, tmp_path), network, axes, self.BASE, settings, seeds=(0, 1), matched_loss=0.65
        )
        assert again.cells == sweep.cells

    def test_training_repeats_and_the_cache_changes_nothing(self, tmp_path):
        cached = train_network(blobs(cache=tmp_path), network, self.BASE, matched_loss=0.6)
        fresh = train_network(blobs(), network, self.BASE, matched_loss=0.6)
        known = train_network(blobs(cache=tmp_path), network, self.BASE, matched_loss=0.6)
        for a, b, c in ((cached.final, fresh.final, known.final), (cached.matched, fresh.matched, known.matched)):
            assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
        other = train_network(blobs(cache=tmp_path), network, self.BASE.changed("lr", 0.05), matched_loss=0.6)
        assert not torch.equal(other.final["0.weight"], cached.final["0.weight"])

    def test_training_is_sgd(self):
        """Against torch's SGD on the same batches."""
        problem = blobs()
        training = Training(lr=0.1, batch_size=16, epochs=2, weight_decay=0.01, seed=4)
        torch.manual_seed(4)
        module = network()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        batches = problem.batches(16, seed=4)
        for step in range(33):  # 11 evaluations of 3 steps: the 32 of two epochs, rounded up
            optimizer.zero_grad()
            inputs, targets = batches.batch(step)
            F.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
        trained = train_network(problem, network, training).final
        for name, value in module.state_dict().items():
            assert torch.allclose(trained[name], value, rtol=1e-4, atol=1e-6)

    def test_divergence_and_a_loss_above_the_threshold_are_gaps(self):
        sweep = width_sweep(
            lambda width: blobs(), network, {"lr": [0.05, 1e8]}, self.BASE, WidthSettings(threshold=1.0, directions=1)
        )
        assert [cell.remark for cell in sweep.cells] == ["", "diverged"]
        assert sweep.summary()[1]["final_width"] is None
        low = width_sweep(
            lambda width: blobs(), network, {"lr": [0.05]}, self.BASE, WidthSettings(threshold=1e-6), matched_loss=1e-9
        )
        assert low.cells[0].final is None
        assert "above the threshold" in low.cells[0].remark
        assert "never reached" in low.cells[0].remark

    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            ({}, "at least one axis"),
            ({"lr": []}, "at least one axis"),
            ({"rate": [0.1]}, "axis"),
            ({"lr": [-0.1]}, "lr must be above 0"),
            ({"lr": [math.nan]}, "lr must be above 0"),
            ({"batch_size": [0]}, "batch_size"),
        ],
    )
    def test_bad_axes(self, axes, message):
        with pytest.raises(LLPFError, match=message):
            width_sweep(lambda width: blobs(), network, axes, self.BASE, WidthSettings())


def test_widths_of_several_networks():
    module = Bowl(torch.diag(torch.tensor([1.0, 4.0])).double())
    states = [{"point": torch.tensor(point, dtype=torch.float64)} for point in ([0.0, 0.0], [0.1, 0.0])]
    networks = Networks(states, ["a", "b"], module)
    widths = measure_widths(networks, of(module)[1], WidthSettings(threshold=0.1, directions=4))
    assert [each.name for each in widths] == ["a", "b"]
    row = widths[1].row()
    assert row["relative_median"] == pytest.approx(widths[1].median / 0.1)
    assert row["open_rays"] == 0
