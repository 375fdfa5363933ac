"""Connectors on landscapes with a known answer, and on networks."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llpf_fast.analysis.complex_certificate import certify_complex
from llpf_fast.analysis.connector import ConnectorSettings, find_connector
from llpf_fast.analysis.networks import Networks
from llpf_fast.analysis.simplices import Hyperplane
from llpf_fast.analysis.toy_landscapes import Hyperbola, Mountainside, Wedges, landscape_loss, landscape_samples
from llpf_fast.errors import LLPFError
from llpf_fast.path import load_model_file
from llpf_fast.verify import Evaluator

FULL = {"batch_size": 1, "window": 10, "momentum": 0.0}


def connect(module, states, **settings):
    optima = Networks(states, module=module)
    settings = {"lr": 0.05, "aim": 1e-12, "steps": 500, **FULL, **settings}
    return find_connector(module, optima, landscape_loss, landscape_samples(), ConnectorSettings(**settings))


def certify(connector, module, **options):
    evaluator = Evaluator(module, landscape_loss, *landscape_samples(), dtype=torch.float64)
    return certify_complex(connector.vertices, connector.complex.simplices, evaluator, **options)


class TestOnToys:
    def test_pair_point_on_the_hyperbola(self):
        """Minima (1/2, 2) and (2, 1/2): the plane between them is a = b, where the minimum is (1, 1)."""
        module = Hyperbola()
        connector = connect(module, [Hyperbola.minimum(0.5), Hyperbola.minimum(2.0)])
        point = connector.vertices[2]
        assert (float(point["a"]), float(point["b"])) == pytest.approx((1.0, 1.0), abs=1e-5)
        certificate = certify(connector, module, threshold=0.02)
        # Straight pieces (t = 1/2 or 2, s = 1): the closed form of their midpoint.
        assert certificate.max_loss == pytest.approx(Hyperbola.midpoint_barrier(0.5, 1.0), rel=1e-3)
        assert certificate.connected
        assert certificate.max_loss < Hyperbola.midpoint_barrier(0.5, 2.0) / 8

    def test_other_branches_of_the_hyperbola_cannot_be_joined(self):
        module = Hyperbola()
        connector = connect(module, [Hyperbola.minimum(1.0), Hyperbola.minimum(-1.0)])
        certificate = certify(connector, module, threshold=0.45)
        assert not certificate.connected
        assert certificate.max_loss >= 0.5

    def test_valleys_beside_the_ridge_cannot_be_joined(self):
        module = Mountainside(ridge=2.0)
        optima_states = [
            {"x": torch.tensor([x], dtype=torch.float64), "y": torch.zeros(1).double()} for x in (1.0, -1.0)
        ]
        certificate = certify(connect(module, optima_states), module, threshold=0.4)
        assert not certificate.connected
        assert certificate.max_loss == pytest.approx(module.barrier_between_valleys())

    def test_three_axes_meet_at_the_origin(self):
        """Wedges: the coordinate axes of R^3; on the diagonal, the plane of the centre, only the origin is on one."""
        axes = torch.eye(3, dtype=torch.float64)
        module = Wedges(axes[0], [axes[:, i : i + 1] for i in range(3)])
        connector = connect(module, [{"point": axis} for axis in axes], kind="star", steps=2000)
        assert connector.vertices[3]["point"].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-3)
        assert certify(connector, module, threshold=1e-5).connected

    def test_surface_training_lowers_the_mean_over_the_complex(self):
        module = Hyperbola()
        optima_states = [Hyperbola.minimum(0.4), Hyperbola.minimum(2.5)]
        before = certify(connect(module, optima_states), module, threshold=1.0)
        after = certify(connect(module, optima_states, surface_steps=2000, lr=0.02), module, threshold=1.0)
        assert sum(after.simplex_max) < 0.9 * sum(before.simplex_max)


class TestHyperplane:
    def test_stays_orthogonal(self):
        draws = torch.Generator().manual_seed(0)
        corners = torch.randn(4, 30, generator=draws)
        plane = Hyperplane(corners)
        point = plane.project_point_(torch.randn(30, generator=draws))
        assert ((corners[1:] - corners[0]) @ (point - corners.mean(0))).abs().max() < 1e-4
        assert plane.distance(point) < 1e-5
        assert plane.distance(point + corners[1] - corners[0]) > 1
        gradient = plane.project_gradient_(torch.randn(30, generator=draws))
        assert ((corners[1:] - corners[0]) @ gradient).abs().max() < 1e-4

    def test_corners_on_one_line_span_one_direction(self):
        corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
        assert len(Hyperplane(corners).basis) == 1

    def test_equal_models(self):
        with pytest.raises(LLPFError, match="same point"):
            Hyperplane(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))

    def test_nan(self):
        with pytest.raises(LLPFError, match="NaN"):
            Hyperplane(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class TestOnNetworks:
    def trained(self, count=3):
        draws = torch.Generator().manual_seed(3)
        inputs = torch.randn(200, 4, generator=draws)
        targets = (inputs[:, 0] > 0).long()
        states = []
        for seed in range(count):
            torch.manual_seed(seed)
            module = Small()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), targets).backward()
                optimizer.step()
            states.append({k: v.clone() for k, v in module.state_dict().items()})
        return module, states, (inputs, targets)

    @pytest.mark.parametrize("surface", [0, 100])
    def test_search_repeats_saves_and_stays_in_its_planes(self, surface, tmp_path):
        module, states, train = self.trained()
        before = {k: v.clone() for k, v in module.state_dict().items()}
        optima = Networks(states, ["a", "b", "c"], module)
        told = []
        settings = ConnectorSettings(steps=100, window=20, surface_steps=surface, lr=0.05, aim=0.0)
        runs = [
            find_connector(module, optima, F.cross_entropy, train, settings, progress=lambda *x: told.append(x))
            for _ in range(2)
        ]
        for a, b in zip(runs[0].vertices, runs[1].vertices, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
        assert told[len(told) // 2 - 1][0] == told[0][1] == 4 * 100 + surface
        vectors = runs[0].vertices.vectors()
        middle = vectors[3] - vectors[:2].mean(0)
        assert abs(float(middle @ (vectors[1] - vectors[0]))) < 1e-4
        assert float(middle.norm()) > 1e-2

        runs[0].certificate = certify_complex(
            runs[0].vertices, runs[0].complex.simplices, Evaluator(module, F.cross_entropy, *train), threshold=5.0
        )
        file = runs[0].save(tmp_path / "connector")
        content = json.loads(file.read_text())
        assert content["optima"] == ["a", "b", "c"]
        assert content["certificate"]["connected"]
        for name, state in zip(content["files"], runs[0].vertices, strict=True):
            loaded = load_model_file(file.parent / name).state
            assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_statistics_of_surface_points_are_their_own(self):
        module, states, train = self.trained()
        settings = ConnectorSettings(kind="star", steps=20, window=20, surface_steps=20)
        connector = find_connector(module, Networks(states, module=module), F.cross_entropy, train, settings)
        module.load_state_dict(connector.vertices[3])
        values = module[0](train[0][:125])  # one whole batch: a last short one is left out
        assert torch.allclose(module[1].running_mean, values.mean(0), atol=1e-4)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lr": 0.0}, "lr must be above 0"),
            ({"lr": float("nan")}, "lr must be above 0"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"surface_steps": -1}, "0 or more"),
            ({"momentum": 1.0}, "below 1"),
            ({"lr": 1e30}, "training loss became"),
        ],
    )
    def test_bad_settings(self, settings, message):
        module, states, train = self.trained(2)
        optima = Networks(states, module=module)
        with pytest.raises(LLPFError, match=message):
            find_connector(module, optima, F.cross_entropy, train, ConnectorSettings(**settings))

    def test_one_model(self):
        module, states, train = self.trained(1)
        with pytest.raises(LLPFError, match="at least 2"):
            find_connector(module, Networks(states, module=module), F.cross_entropy, train)
