"""The toy landscapes against their closed forms, by autograd, integration and brute force."""

import itertools
import math

import pytest
import torch

from llpf_fast.analysis.toy_landscapes import (
    Hyperbola,
    Mountainside,
    Wedges,
    all_coordinate_wedges_distance,
    best_distance_law,
    is_reached,
    landscape_loss,
    landscape_samples,
    nearest_in_subspace,
)
from llpf_fast.errors import LLPFError
from llpf_fast.path.polyline import Polyline, Position
from llpf_fast.verify import Evaluator, certify


def at(module, *point):
    for parameter, value in zip(module.parameters(), point, strict=True):
        parameter.data.fill_(value)
    return float(module.value().detach())


def evaluator(module):
    return Evaluator(module, landscape_loss, *landscape_samples(), dtype=torch.float64)


def random_basis(size, columns, seed=0):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestHyperbola:
    PAIRS = ((0.5, 2.0), (1.0, 3.0), (-0.4, -2.0), (1.0, -1.0), (0.7, -2.1))

    @pytest.mark.parametrize(("t", "s"), PAIRS)
    def test_the_line_by_the_certificate(self, t, s):
        """Barrier and place of the highest point, with the library's own evaluator and certificate."""
        path = [Hyperbola.minimum(t), Hyperbola.minimum(s)]
        verdict = certify(path, evaluator(Hyperbola()), threshold=100.0, straight_points=0)
        middle = evaluator(Hyperbola())(Polyline(path).state(Position(0, 0.5))).loss
        assert middle == pytest.approx(Hyperbola.midpoint_barrier(t, s), rel=1e-12)
        assert 0.9 * middle < verdict.max_loss <= middle <= verdict.bound
        for point in verdict.points:
            fraction = point.at.waypoint + point.at.fraction
            assert point.train_loss == pytest.approx(Hyperbola.line_loss(t, s, fraction), rel=1e-10, abs=1e-15)

    def test_opposite_branches_meet_at_the_saddle(self):
        assert Hyperbola.midpoint_barrier(1.0, -1.0) == 0.5

    @pytest.mark.parametrize(("t", "s"), PAIRS)
    def test_the_second_order_prediction_is_four_times_too_high(self, t, s):
        def loss(point):
            return (point[0] * point[1] - 1) ** 2 / 2

        ends = [torch.tensor([r, 1 / r], dtype=torch.float64) for r in (t, s)]
        step = ends[1] - ends[0]
        hessian = sum(torch.autograd.functional.hessian(loss, end) for end in ends)
        predicted = float(step @ hessian @ step) / 16
        assert predicted == pytest.approx(Hyperbola.second_order_barrier(t, s), rel=1e-9)

    @pytest.mark.parametrize("t", [1.0, 0.3, -2.0])
    @pytest.mark.parametrize("angle", [0.0, 0.4, 1.3, 2.5, 4.0, 5.5])
    def test_radial_width_by_brute_force(self, t, angle):
        u = (math.cos(angle), math.sin(angle))
        radii = torch.arange(1, 2_000_001, dtype=torch.float64) * 1e-5
        losses = ((t + radii * u[0]) * (1 / t + radii * u[1]) - 1) ** 2 / 2
        first = float(radii[losses > 0.1][0])
        assert Hyperbola.radial_width(t, u, 0.1) == pytest.approx(first, abs=1.1e-5)

    def test_radial_width_along_a_flat_direction_ends(self):
        """Along the tangent the loss is still of fourth order."""
        u = (1 / math.sqrt(2), -1 / math.sqrt(2))
        assert Hyperbola.radial_width(1.0, u, 0.08) == pytest.approx(math.sqrt(2 * math.sqrt(0.16)))

    def test_negative_threshold(self):
        with pytest.raises(LLPFError, match="below 0"):
            Hyperbola.radial_width(1.0, (1.0, 0.0), -0.1)


class TestMountainside:
    def test_descent_is_the_gradient_flow(self):
        """Against a Runge-Kutta integration of autograd's gradient."""
        hill = Mountainside(slope=0.7, ridge=1.5)

        def slope_at(point):
            hill.x.data[:], hill.y.data[:] = point[0], point[1]
            return -torch.cat(torch.autograd.grad(hill.value(), [hill.x, hill.y]))

        here, h = torch.tensor([0.05, 2.0], dtype=torch.float64), 0.002
        for _ in range(1000):
            k1 = slope_at(here)
            k2 = slope_at(here + h / 2 * k1)
            k3 = slope_at(here + h / 2 * k2)
            k4 = slope_at(here + h * k3)
            here = here + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        assert here.tolist() == pytest.approx(hill.descend(0.05, 2.0, 2.0), rel=1e-9)

    @pytest.mark.parametrize("factor", [0.5, 0.98, 1.02, 1.5])
    def test_runs_that_part_late_stay_in_one_valley(self, factor):
        hill = Mountainside(ridge=2.0)
        split = factor * hill.latest_instability(0.01, 0.1)
        a, b = hill.split_runs(0.01, 1.0, split, 0.1, split + 20.0)
        highest = max(hill.line_loss(a, b, i / 200) for i in range(201))
        if factor < 1:
            assert highest == pytest.approx(hill.barrier_between_valleys(), rel=1e-6)
        else:
            assert highest < 1e-6

    def test_line_loss_is_the_loss(self):
        hill = Mountainside(slope=0.3, ridge=0.9)
        assert hill.line_loss((-1.0, 0.2), (0.5, 0.6), 0.25) == pytest.approx(at(hill, -0.625, 0.3))

    def test_on_the_ridge_nothing_decides(self):
        assert Mountainside().descend(0.0, 1.0, 3.0)[0] == 0.0

    def test_bad_values(self):
        with pytest.raises(LLPFError, match="above 0"):
            Mountainside(ridge=0.0)
        with pytest.raises(LLPFError, match="between 0 and 1"):
            Mountainside().latest_instability(0.0, 0.1)


class TestWedges:
    @pytest.mark.parametrize(("size", "dimension"), [(4, 1), (5, 2), (6, 5), (3, 3), (4, 0)])
    def test_all_coordinate_wedges_by_looking_at_each(self, size, dimension):
        points = torch.randn(20, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        closed = all_coordinate_wedges_distance(points, dimension)
        if dimension:
            axes = torch.eye(size, dtype=torch.float64)
            subsets = [axes[:, list(chosen)] for chosen in itertools.combinations(range(size), dimension)]
            model = Wedges(points[0], subsets)
            each = torch.stack([model.distances(point).min() for point in points]).detach()
        else:
            each = points.norm(dim=1)
        assert torch.allclose(closed, each, atol=1e-12)

    def test_nearest_wedge_thickness_and_profile(self):
        up, across = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
        centre = torch.tensor([0.0, 5.0])
        point = torch.tensor([1.5, 3.0])
        for profile, expected in (("identity", 1.0), ("square", 1.0)):
            model = Wedges(point, [up, across], [torch.zeros(2), centre], thickness=0.5, profile=profile)
            assert float(model.value().detach()) == pytest.approx(expected)
        thick = Wedges(point, [up], thickness=2.0)
        assert float(thick.value().detach()) == 0.0

    def test_gradient_on_a_wedge_is_zero_not_nan(self):
        model = Wedges(torch.tensor([0.0, 2.0]), [torch.tensor([[0.0], [1.0]])])
        model.value().backward()
        assert model.point.grad.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("subspace", range(0, 13))
    def test_reached_if_and_only_if_there_are_dimensions_enough(self, subspace):
        size, wedge = 12, 5
        basis = torch.linalg.qr(random_basis(size, wedge, 1)).Q
        for seed in range(20):
            point = random_basis(size, 1, 100 + seed).squeeze(1)
            best, distance = nearest_in_subspace(point, random_basis(size, subspace, 200 + seed), basis)
            assert (distance < 1e-9 * float(point.norm())) == is_reached(size, wedge, subspace)
            assert float(Wedges(best, [basis]).distances(best).min()) == pytest.approx(distance, abs=1e-9)

    @pytest.mark.parametrize("subspace", [0, 20, 60, 100])
    def test_best_distance_law(self, subspace):
        """Root mean square over orientations; 40 draws leave about 2 %."""
        size, wedge, squares = 200, 80, []
        basis = torch.eye(size, dtype=torch.float64)[:, :wedge]
        for seed in range(40):
            point = random_basis(size, 1, seed).squeeze(1)
            distance = nearest_in_subspace(point, random_basis(size, subspace, 1000 + seed), basis)[1]
            squares.append((distance / float(point.norm())) ** 2)
        measured_distance = math.sqrt(sum(squares) / len(squares))
        assert measured_distance == pytest.approx(best_distance_law(1.0, size, wedge, subspace), rel=0.05)

    def test_law_beyond_the_limit_is_zero(self):
        assert best_distance_law(3.0, 10, 4, 6) == 0.0
        assert best_distance_law(3.0, 10, 4, 8) == 0.0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bases": []}, "at least one basis"),
            ({"bases": [torch.ones(3, 2)]}, "depend on each other"),
            ({"bases": [torch.ones(2, 1)]}, r"must be \[3, n\]"),
            ({"thickness": -1.0}, "0 or more"),
            ({"centres": []}, "as many centres"),
        ],
    )
    def test_bad_input(self, change, message):
        with pytest.raises(LLPFError, match=message):
            Wedges(**{"point": torch.zeros(3), "bases": [torch.eye(3)[:, :1]], **change})
