"""The certificate over simplices, on functions whose maximum on the simplex is known."""

import itertools
import math

import pytest
import torch

from llpf_fast.analysis.complex_certificate import certify_complex
from llpf_fast.analysis.networks import Networks
from llpf_fast.analysis.simplices import Complex, Subdivision
from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluation

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def networks(points=CORNERS):
    return Networks([{"x": torch.tensor(point, dtype=torch.float64)} for point in points])


def measured(function, *, samples=1000, error=0.0, accuracy=None):
    def evaluate(state):
        loss = function(*state["x"].tolist())
        return Evaluation(loss, error, accuracy, samples, int(not math.isfinite(loss)))

    return evaluate


def bump(x, y, width, height=1.0):
    return measured(lambda a, b: 0.01 + height * math.exp(-((a - x) ** 2 + (b - y) ** 2) / width**2))


def certify(evaluate, points=CORNERS, simplices=((0, 1, 2),), **options):
    return certify_complex(networks(points), simplices, evaluate, **{"threshold": 0.1, **options})


class TestWhereTheHighestLossIs:
    @pytest.mark.parametrize("top", [(0.3, 0.3), (0.37, 0.21), (0.12, 0.61)])
    def test_inside_a_triangle(self, top):
        certificate = certify(measured(lambda a, b: 0.09 - (a - top[0]) ** 2 - (b - top[1]) ** 2))
        assert certificate.connected
        assert certificate.max_loss == pytest.approx(0.09, abs=1e-4)
        assert certificate.max_loss_at[1:] == pytest.approx(top, abs=0.02)
        assert certificate.edge_max < 0.09 - 0.01

    def test_low_edges_prove_nothing(self):
        """A check of the three edges alone would pass."""
        certificate = certify(bump(0.3, 0.3, 0.12))
        assert certificate.edge_max < 0.1
        assert not certificate.connected
        assert certificate.max_loss == pytest.approx(1.01, abs=0.01)
        assert "above the threshold 0.1" in certificate.reasons[0]

    @pytest.mark.parametrize("top", [(0.27, 0.31), (0.4, 0.22), (0.2, 0.53)])
    def test_refinement_finds_what_the_first_points_miss(self, top):
        """With two rounds of bisection the loss stays below the threshold at every corner of a cell."""
        evaluate = bump(*top, 0.1)
        coarse = certify(evaluate, spacing=0.5, rounds=0, most_rounds=0)
        certificate = certify(evaluate, spacing=0.5, rounds=10)
        assert coarse.max_loss < certificate.max_loss
        assert not certificate.connected
        assert certificate.max_loss > 0.9

    def test_the_threshold_decides(self):
        function = measured(lambda a, b: 0.09 - (a - 0.3) ** 2 - (b - 0.3) ** 2)
        assert certify(function, threshold=0.0901).connected
        assert not certify(function, threshold=0.0899).connected

    def test_inside_a_tetrahedron(self):
        points = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        top = (0.2, 0.3, 0.25)
        function = measured(lambda *x: 0.09 - sum((a - b) ** 2 for a, b in zip(x, top, strict=True)))
        certificate = certify(function, points, ((0, 1, 2, 3),), rounds=12, cells=32)
        assert certificate.max_loss == pytest.approx(0.09, abs=1e-3)
        assert certificate.max_loss_at[1:] == pytest.approx(top, abs=0.05)

    def test_each_simplex_has_its_own(self):
        points = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
        certificate = certify(measured(lambda a, b: a * b / 2), points, ((0, 1, 2), (1, 2, 3)), threshold=1.0)
        assert certificate.simplex_max == pytest.approx([0.125, 0.5])
        assert certificate.vertex_loss == pytest.approx([0.0, 0.0, 0.0, 0.5])

    def test_lines_only(self):
        certificate = certify(measured(lambda a, b: a * (1 - a) / 5), CORNERS, ((0, 1), (0, 2)))
        assert certificate.max_loss == pytest.approx(0.05)
        assert certificate.edge_max == certificate.max_loss


class TestSubdivision:
    def cut(self, size):
        vectors = networks().vectors()
        subdivision = Subdivision([(0, 1, 2)], vectors @ vectors.T)
        subdivision.cut_to(size)
        return subdivision

    def test_cells_fill_the_triangle(self):
        subdivision = self.cut(0.3)
        areas = []
        for cell in subdivision.cells:
            a, b, c = (torch.tensor(corner[1:], dtype=torch.float64) for corner in cell.corners)
            areas.append(abs(float(torch.linalg.det(torch.stack([b - a, c - a])))) / 2)
        assert sum(areas) == pytest.approx(0.5, rel=1e-12)
        assert max(subdivision.size(cell) for cell in subdivision.cells) <= 0.3
        assert subdivision.longest == pytest.approx(math.sqrt(2))

    def test_points_are_shared_exactly(self):
        subdivision = self.cut(0.3)
        assert all(math.fsum(point) == 1.0 for point in subdivision.points())
        coordinates = {tuple(round(w, 9) for w in point) for point in subdivision.points()}
        assert len(coordinates) == len(subdivision.points())

    @pytest.mark.parametrize("top", [(0.31, 0.33), (0.6, 0.1)])
    def test_estimate_bounds_a_quadratic_inside_every_cell(self, top):
        subdivision = self.cut(0.3)

        def value(point):
            return 1 - 3 * ((point[1] - top[0]) ** 2 + (point[2] - top[1]) ** 2)

        values = {point: value(point) for point in subdivision.points()}
        fractions = [(i / 8, j / 8) for i, j in itertools.product(range(9), repeat=2) if i + j <= 8]
        for cell in subdivision.cells:
            a, b, c = cell.corners
            inside = [
                value([u * x + v * y + (1 - u - v) * z for x, y, z in zip(a, b, c, strict=True)]) for u, v in fractions
            ]
            assert max(inside) <= subdivision.estimate(cell, values) + 1e-12


class TestScreening:
    def test_the_full_set_decides(self):
        """The screening subset is a little too low everywhere; the full set is over the threshold inside."""
        screen = measured(lambda a, b: 0.085 - (a - 0.3) ** 2 - (b - 0.3) ** 2, samples=100, error=0.01)
        full = measured(lambda a, b: 0.105 - (a - 0.3) ** 2 - (b - 0.3) ** 2, samples=5000)
        certificate = certify(screen, full_train=full)
        assert not certificate.connected
        assert certificate.max_loss_standard_error is None
        assert certificate.points_on_all_samples < certificate.points_evaluated / 2
        assert certificate.evaluation["samples"] == 5000
        assert certificate.evaluation["screening_samples"] == 100

    def test_far_below_needs_the_worst_points_only(self):
        screen = measured(lambda a, b: 0.02 + 0.01 * a, samples=100, error=0.001)
        certificate = certify(screen, full_train=measured(lambda a, b: 0.02 + 0.01 * a), worst=3)
        assert certificate.connected
        assert certificate.points_on_all_samples <= 3 + 3 + 3

    def test_test_accuracy(self):
        certificate = certify(measured(lambda a, b: 0.0), evaluate_test=measured(lambda a, b: 0.1, accuracy=0.9))
        assert certificate.min_test_accuracy == 0.9


class TestBadInput:
    def test_nan_inside_is_not_connected(self):
        certificate = certify(measured(lambda a, b: math.nan if 0.2 < a < 0.4 and 0.2 < b < 0.4 else 0.01))
        assert not certificate.connected
        assert "not finite" in certificate.reasons[0]
        assert math.isnan(certificate.max_loss)

    @pytest.mark.parametrize("threshold", [math.nan, math.inf])
    def test_threshold(self, threshold):
        with pytest.raises(LLPFError, match="finite"):
            certify(bump(0, 0, 1), threshold=threshold)

    def test_no_simplices(self):
        with pytest.raises(LLPFError, match="at least two vertices"):
            certify(bump(0, 0, 1), simplices=((0,),))

    def test_unknown_vertex(self):
        with pytest.raises(LLPFError, match="outside 0 to 2"):
            certify(bump(0, 0, 1), simplices=((0, 3),))

    def test_one_point(self):
        with pytest.raises(LLPFError, match="same point"):
            certify(bump(0, 0, 1), ((1.0, 1.0), (1.0, 1.0)), ((0, 1),))


class TestComplex:
    def test_three_optima(self):
        complex_ = Complex.of(3)
        assert [complex_.label(v) for v in range(7)] == ["0", "1", "2", "0+1", "0+2", "1+2", "centre"]
        assert sorted(complex_.simplices) == [(0, 3, 6), (0, 4, 6), (1, 3, 6), (1, 5, 6), (2, 4, 6), (2, 5, 6)]

    @pytest.mark.parametrize(("optima", "simplices", "points"), [(2, 2, 3), (3, 6, 7), (4, 24, 15), (5, 120, 31)])
    def test_barycentric_subdivision(self, optima, simplices, points):
        complex_ = Complex.of(optima)
        assert (len(complex_.simplices), len(complex_.faces)) == (simplices, points)
        assert complex_.dimension == optima - 1

    def test_triangles_and_star(self):
        triangles, star = Complex.of(4, "triangles"), Complex.of(7, "star")
        assert (len(triangles.simplices), triangles.dimension, len(triangles.faces)) == (12, 2, 11)
        assert star.simplices == tuple((i, 7) for i in range(7))

    @pytest.mark.parametrize(("optima", "kind", "message"), [(1, "simplices", "at least 2"), (6, "simplices", "star")])
    def test_bad_input(self, optima, kind, message):
        with pytest.raises(LLPFError, match=message):
            Complex.of(optima, kind)
