"""Second-order estimates and the curvature integral against closed forms and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.analysis import Problem
from llpf_fast.analysis.directional_loss import DirectionalLoss
from llpf_fast.analysis.measures import rank_correlation
from llpf_fast.analysis.predict import curvature_integral, displacement, predict_barrier

from .toy_networks import Tanh, product_problem, product_state, random_classes


def _doubles(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in net.state_dict().items()}


def _quadratic() -> tuple[Problem, list[dict[str, torch.Tensor]]]:
    """Least squares with a linear network: quadratic in its parameters; two points with gradients far from 0."""
    generator = torch.Generator().manual_seed(3)
    data = (torch.randn(30, 6, generator=generator), torch.randn(30, 2, generator=generator))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(_doubles(nn.Linear(6, 2)))
    return Problem(nn.Linear(6, 2), nn.functional.mse_loss, train=data), states


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_with_gradients_it_is_exact_on_a_quadratic(fraction: float) -> None:
    problem, states = _quadratic()
    networks = problem.networks(states)
    loss = DirectionalLoss(problem)
    prediction = predict_barrier(loss, networks)
    ends = [loss.loss(state) for state in states]
    measured = loss.loss(networks.between(0, 1, fraction)) - ((1 - fraction) * ends[0] + fraction * ends[1])
    assert prediction.at(fraction) == pytest.approx(measured, rel=1e-12)
    # A quadratic bowl bends upward: the chord lies above it.
    assert measured < 0 < prediction.sixteenth


@pytest.mark.parametrize(("t", "s"), [(2.0, 0.5), (1.0, 3.0)])
def test_the_sixteenth_is_four_times_the_hyperbolas_barrier(t: float, s: float) -> None:
    problem = product_problem()
    networks = problem.networks([product_state(t, 1 / t), product_state(s, 1 / s)])
    prediction = predict_barrier(DirectionalLoss(problem), networks)
    assert prediction.sixteenth == pytest.approx(4 * (t - s) ** 4 / (32 * t**2 * s**2), rel=1e-12)
    assert prediction.midpoint == pytest.approx(prediction.sixteenth, abs=1e-12)  # both gradients are 0
    assert prediction.highest >= prediction.midpoint


def test_the_maximum_is_sought_between_the_ends() -> None:
    from llpf_fast.analysis.predict import Prediction

    lopsided = Prediction(0.0, 0.0, 0.0, 1.0)  # a (1-a)^2 / 2, highest at 1/3
    assert lopsided.highest == pytest.approx(lopsided.at(1 / 3), rel=1e-3)
    assert Prediction(0.0, 0.0, -1.0, -1.0).highest == 0.0


def test_the_integral_is_exact_on_the_hyperbola() -> None:
    problem = product_problem()
    networks = problem.networks([product_state(1, 1), product_state(-1, -1)])
    integral = curvature_integral(DirectionalLoss(problem), networks, nodes=2)
    assert integral.barrier == pytest.approx(0.5, rel=1e-12)
    assert integral.integral == pytest.approx(0.5, rel=1e-12)


def test_the_integral_is_the_barrier_of_a_tanh_network() -> None:
    problem = Problem(Tanh(), train=random_classes())
    networks = problem.networks([Tanh(1, scale=3.0), Tanh(2, scale=3.0)])
    integral = curvature_integral(DirectionalLoss(problem), networks, nodes=24)
    assert abs(integral.barrier) > 0.1
    assert integral.integral == pytest.approx(integral.barrier, rel=1e-8)


def test_the_integral_misses_the_kinks_of_relu() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({name: 3 * torch.randn_like(value) for name, value in net.state_dict().items()})
    problem = Problem(net, train=random_classes())
    integral = curvature_integral(DirectionalLoss(problem), problem.networks(states), nodes=24)
    assert abs(integral.integral - integral.barrier) > 0.05 * abs(integral.barrier)


def test_derivatives_against_finite_differences() -> None:
    net = Tanh(3)
    problem = Problem(net, train=random_classes(33))
    loss = DirectionalLoss(problem, batch_size=10)
    theta = _doubles(net)
    generator = torch.Generator().manual_seed(0)
    directions = [
        {"body.weight": torch.randn(8, 6, generator=generator), "body.bias": torch.randn(8, generator=generator)},
        {"head.weight": torch.randn(3, 8, generator=generator)},
    ]
    expansion = loss.expand(theta, directions)

    def moved(s: list[float]) -> dict[str, torch.Tensor]:
        point = dict(theta)
        for k, direction in enumerate(directions):
            for name, value in direction.items():
                point[name] = point[name] + s[k] * value.double()
        return point

    h = 1e-4
    for k in range(2):
        forth, back = ([h if i == k else 0.0 for i in range(2)], [-h if i == k else 0.0 for i in range(2)])
        slope = (loss.loss(moved(forth)) - loss.loss(moved(back))) / (2 * h)
        assert float(expansion.slopes[k]) == pytest.approx(slope, rel=1e-6)
        row = (loss.expand(moved(forth), directions).slopes - loss.expand(moved(back), directions).slopes) / (2 * h)
        torch.testing.assert_close(expansion.curvature[k], row, rtol=1e-6, atol=1e-9)
    assert expansion.loss == pytest.approx(loss.loss(theta), rel=1e-14)


def test_the_restriction_agrees_with_the_whole_hessian() -> None:
    net = Tanh(4, hidden=3)
    inputs, targets = random_classes(20)
    problem = Problem(net, train=(inputs, targets))
    networks = problem.networks([net, Tanh(5, hidden=3)])
    move = displacement(networks)
    expansion = DirectionalLoss(problem).expand(_doubles(net), [move])

    def whole(vector: torch.Tensor) -> torch.Tensor:
        state = networks.unflatten(vector)
        output = torch.func.functional_call(net, state, inputs.double())
        return nn.functional.cross_entropy(output, targets)

    theta = networks.flatten(networks[0])
    d = networks.flatten(networks[1]) - theta
    hessian = torch.func.hessian(whole)(theta)
    assert float(expansion.curvature[0, 0]) == pytest.approx(float(d @ hessian @ d), rel=1e-10)
    assert float(expansion.slopes[0]) == pytest.approx(float(torch.func.grad(whole)(theta) @ d), rel=1e-10)


def test_a_subset_is_what_is_asked_for() -> None:
    problem = Problem(Tanh(), train=random_classes(60))
    assert DirectionalLoss(problem, 12).samples == 12
    assert DirectionalLoss(problem, 0).samples == 60
    networks = problem.networks([Tanh(1), Tanh(2)])
    with pytest.raises(LLPFError, match="nodes"):
        curvature_integral(DirectionalLoss(problem), networks, nodes=0)


def test_attention_has_second_derivatives() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))

    inputs, targets = torch.randn(8, 5, 4), torch.randint(3, (8,))
    problem = Problem(Attention(), train=(inputs, targets))
    prediction = predict_barrier(DirectionalLoss(problem), problem.networks([Attention(), Attention()]))
    assert prediction.curvature_1 != 0


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]).rho == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]).rho == pytest.approx(-1.0)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]).rho == pytest.approx(0.6)
    assert rank_correlation([1, 2], [1, 2]).rho is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]).rho is None
    assert rank_correlation([1, 2, float("nan")], [1, 2, 3]).rho is None
