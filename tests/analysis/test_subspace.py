"""Random subspaces: the basis, the wedge law by training, the intrinsic dimension."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llpf_fast.analysis.problem import Problem
from llpf_fast.analysis.subspace import RandomBasis, SubspaceSettings, intrinsic_dimension, train_in_subspace
from llpf_fast.analysis.toy_landscapes import Wedges, best_distance_law, is_reached, landscape_loss, landscape_samples
from llpf_fast.errors import LLPFError


class TestBasis:
    MASK = torch.tensor([1.0] * 50 + [0.0] * 14)

    @pytest.mark.parametrize("dimension", [1, 31, 32, 45])
    def test_made_anew_is_as_stored(self, dimension):
        stored = RandomBasis(self.MASK, dimension, seed=2)
        anew = RandomBasis(self.MASK, dimension, seed=2, memory=0)
        assert stored.is_stored
        assert not anew.is_stored
        z, g = torch.randn(dimension), torch.randn(64)
        assert torch.allclose(stored.combine(z), anew.combine(z), atol=1e-6)
        assert torch.allclose(stored.coordinates(g), anew.coordinates(g), atol=1e-6)

    def test_unit_columns_zero_in_padding_and_adjoint(self):
        basis = RandomBasis(self.MASK, 40, seed=2)
        columns = torch.stack([basis.combine(row) for row in torch.eye(40)])
        assert torch.allclose(columns.norm(dim=1), torch.ones(40))
        assert not columns[:, 50:].any()
        z, g = torch.randn(40), torch.randn(64)
        assert float(basis.combine(z) @ g) == pytest.approx(float(z @ basis.coordinates(g)), rel=1e-3, abs=1e-5)
        assert torch.linalg.matrix_rank(columns) == 40

    def test_nested_and_seeded(self):
        small, large = (RandomBasis(self.MASK, d, seed=2) for d in (3, 40))
        z = torch.randn(3)
        assert torch.allclose(small.combine(z), large.combine(F.pad(z, (0, 37))), atol=1e-6)
        assert not torch.allclose(small.combine(z), RandomBasis(self.MASK, 3, seed=3).combine(z))

    @pytest.mark.parametrize("dimension", [0, 51])
    def test_bad_dimension(self, dimension):
        with pytest.raises(LLPFError, match="1 to 50 dimensions"):
            RandomBasis(self.MASK, dimension, seed=0)


def wedge_problem(size=16, wedge=6):
    module = Wedges(torch.ones(size), [torch.eye(size)[:, :wedge]])
    return Problem(module, landscape_loss, train=landscape_samples(), test=None)


def starts_of(count):
    return [{"point": torch.randn(16, generator=torch.Generator().manual_seed(seed))} for seed in range(count)]


class TestWedgeLaw:
    """D = 16, n = 6, so that d = 10 is the least; L is the squared distance.

    Close above the limit gradient descent is slow (the problem's condition number diverges); the limit itself is held
    by least squares in test_toys.
    """

    SETTINGS = SubspaceSettings(steps=400, lr=0.2, batch_size=1, optimizer="sgd")

    @pytest.mark.parametrize("dimension", [2, 7, 9, 14, 16])
    def test_reached_if_and_only_if(self, dimension):
        start = starts_of(dimension + 1)[-1]
        trained = train_in_subspace(wedge_problem(), start, dimension, self.SETTINGS, seed=dimension)
        distance = float(trained["point"][6:].norm())
        assert (distance < 1e-3 * float(start["point"].norm())) == is_reached(16, 6, dimension)

    def test_best_distance(self):
        """Root mean square over 25 draws against the law."""
        problem, squares = wedge_problem(), []
        for seed, start in enumerate(starts_of(25)):
            settings = SubspaceSettings(steps=80, lr=0.2, batch_size=1, optimizer="sgd")
            trained = train_in_subspace(problem, start, 4, settings, seed=seed)
            squares.append(float(trained["point"][6:].square().sum() / start["point"].square().sum()))
        law = best_distance_law(1.0, 16, 6, 4)
        assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(law, rel=0.1)

    def test_intrinsic_dimension_is_the_codimension(self):
        dimension = intrinsic_dimension(wedge_problem(), starts_of(2), [4, 8, 14, 16], self.SETTINGS, loss_level=1e-4)
        assert (dimension.dimension, dimension.below) == (14, 8)
        assert [row["success"] for row in dimension.summary()] == [0.0, 0.0, 1.0, 1.0]


def classes():
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 6, generator=draws)
    targets = (inputs[:, :3].sum(1) > 0).long()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return Problem(module, F.cross_entropy, train=(inputs, targets), test=(inputs, targets))


class TestNetworks:
    def test_stays_in_the_subspace(self):
        problem = classes()
        start = {k: v.clone() for k, v in problem.module.state_dict().items()}
        settings = SubspaceSettings(steps=30, batch_size=20)
        trained_states = [
            train_in_subspace(problem, start, d, settings, seed=s) for d, s in ((5, 0), (5, 0), (5, 1), (1, 0))
        ]
        moved = [
            torch.cat([(f[name] - start[name]).flatten() for name, _ in problem.module.named_parameters()])
            for f in trained_states
        ]
        assert torch.equal(moved[0], moved[1])
        assert not torch.allclose(moved[0], moved[2])
        # One dimension: all points lie on one line.
        long = train_in_subspace(problem, start, 1, SubspaceSettings(steps=60, batch_size=20), seed=0)
        other = torch.cat([(long[name] - start[name]).flatten() for name, _ in problem.module.named_parameters()])
        assert abs(float(F.cosine_similarity(moved[3], other, dim=0))) == pytest.approx(1.0, abs=1e-4)
        assert torch.equal(start["0.weight"], problem.module.state_dict()["0.weight"])

    def test_frozen_parameters_stay(self):
        problem = classes()
        problem.module[0].weight.requires_grad_(False)
        start = problem.module.state_dict()
        trained = train_in_subspace(problem, start, 4, SubspaceSettings(steps=5))
        assert torch.equal(trained["0.weight"], start["0.weight"])
        assert not torch.equal(trained["3.weight"], start["3.weight"])

    def test_accuracy_grows_and_the_smallest_is_found(self, tmp_path):
        problem = classes()
        problem.cache = tmp_path
        start = problem.module.state_dict()
        told = []
        run = lambda: intrinsic_dimension(
            problem,
            [start],
            [40, 1],
            SubspaceSettings(steps=150, batch_size=20),
            baseline=1.0,
            progress=lambda *x: told.append(x),
        )
        dimension = run()
        assert dimension.measure == "test_accuracy"
        assert [each.dimension for each in dimension.runs] == [1, 40]
        assert dimension.runs[0].test_accuracy < 0.9 <= dimension.runs[1].test_accuracy
        assert (dimension.dimension, dimension.below) == (40, 1)
        assert told[-1][:2] == (2, 2)
        assert run().runs == dimension.runs

    def test_none_suffices(self):
        problem = classes()
        settings = SubspaceSettings(steps=5)
        dimension = intrinsic_dimension(
            problem, [problem.module.state_dict()], [1, 2], settings, baseline=1.0, share=1.0
        )
        assert (dimension.dimension, dimension.below) == (None, 2)

    def test_divergence_is_a_gap(self):
        problem = wedge_problem()
        start = {"point": torch.ones(16)}
        settings = SubspaceSettings(steps=400, lr=1e6, optimizer="sgd")
        dimension = intrinsic_dimension(problem, [start], [3], settings, loss_level=0.1)
        assert dimension.dimension is None
        assert math.isnan(dimension.runs[0].loss)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dimensions": []}, "dimensions to try"),
            ({"starts": []}, "at least one network"),
            ({"baseline": None}, "name either"),
            ({"loss_level": 0.1}, "name either"),
            ({"baseline": 1.5}, "must lie in"),
            ({"settings": SubspaceSettings(steps=0)}, "steps must be above 0"),
            ({"settings": SubspaceSettings(optimizer="adamw")}, "adam or sgd"),
            ({"dimensions": [1000]}, "dimensions, got 1000"),
        ],
    )
    def test_bad_input(self, options, message):
        problem = classes()
        given = {"starts": [problem.module.state_dict()], "dimensions": [2], "baseline": 0.9, **options}
        with pytest.raises(LLPFError, match=message):
            intrinsic_dimension(problem, **given)
