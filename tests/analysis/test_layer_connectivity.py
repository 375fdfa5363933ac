"""Layer-wise connectivity on the hyperbola, worked by hand, and on networks with buffers and tied tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.analysis import Problem
from llpf_fast.analysis.layers import layer_connectivity

from .toy_networks import Tanh, product_problem, product_state, random_classes

T, S = 2.0, 0.5


@pytest.fixture(scope="module")
def hyperbola():
    problem = product_problem()
    networks = problem.networks([product_state(T, 1 / T), product_state(S, 1 / S)], names=["t", "s"])
    return layer_connectivity(problem, networks, nodes=2)


def test_single_layers_by_hand(hyperbola) -> None:
    # First factor halfway, (t+s)/2 * 1/t: loss ((s-t)/(2t))^2 / 2; second halfway, t (1/t+1/s)/2: ((t-s)/(2s))^2 / 2.
    at_t, at_s = (T - S) ** 2 / (8 * T**2), (T - S) ** 2 / (8 * S**2)
    alone = [[g.barriers["train_loss"] for g in hyperbola.select("alone", base)] for base in (0, 1)]
    assert alone[0] == pytest.approx([at_t, at_s], rel=1e-5)
    assert alone[1] == pytest.approx([at_s, at_t], rel=1e-5)


def test_one_layer_alone_is_quadratic_so_its_prediction_is_exact(hyperbola) -> None:
    for base in (0, 1):
        for group in hyperbola.select("alone", base):
            assert group.predicted == pytest.approx(group.barriers["train_loss"], rel=1e-5)


def test_all_layers_together_are_the_midpoint_in_every_order(hyperbola) -> None:
    expected = (T - S) ** 4 / (32 * T**2 * S**2)
    for order in ("shallow", "deep", "random"):
        for base in (0, 1):
            groups = hyperbola.select(order, base)
            assert groups[-1].barriers["train_loss"] == pytest.approx(expected, rel=1e-5)
            assert sorted(groups[-1].layers) == ["first", "second"]
    assert hyperbola.midpoint()["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert hyperbola.whole.sixteenth == pytest.approx(4 * expected, rel=1e-10)
    assert hyperbola.integral.integral == pytest.approx(expected, rel=1e-10)


def test_orders(hyperbola) -> None:
    assert [g.layers for g in hyperbola.select("shallow", 0)] == [["first"], ["first", "second"]]
    assert [g.layers for g in hyperbola.select("deep", 1)] == [["second"], ["second", "first"]]
    deep = hyperbola.select("deep", 0)[0]
    assert deep.barriers == hyperbola.select("alone", 0)[1].barriers


def test_blocks_sum_to_the_whole() -> None:
    problem = Problem(Tanh(), train=random_classes(), test=random_classes(seed=1))
    networks = problem.networks([Tanh(1), Tanh(2)])
    connectivity = layer_connectivity(problem, networks, tensors=True, integral=False)
    from llpf_fast.analysis.directional_loss import DirectionalLoss
    from llpf_fast.analysis.predict import predict_barrier

    assert [place.layer for place in connectivity.layers] == ["body.weight", "body.bias", "head.weight", "head.bias"]
    direct = predict_barrier(DirectionalLoss(problem), networks)
    assert connectivity.whole.midpoint == pytest.approx(direct.midpoint, rel=1e-10)
    assert connectivity.whole.slope_2 == pytest.approx(direct.slope_2, rel=1e-10)
    assert sum(place.share for place in connectivity.layers) == pytest.approx(1.0)
    assert {"train_loss", "train_error", "test_loss", "test_error"} == connectivity.groups[0].barriers.keys()
    assert set(connectivity.ranks()) >= {"alone", "alone_base_0", "alone_base_1", "shallow", "deep", "random"}
    assert connectivity.ranks()["alone"].count == 8


def test_predictions_are_exact_on_a_quadratic_with_unequal_ends() -> None:
    data = (torch.randn(30, 6), torch.randn(30, 2))
    problem = Problem(nn.Linear(6, 2), nn.functional.mse_loss, train=data)
    networks = problem.networks([nn.Linear(6, 2), nn.Linear(6, 2)])
    connectivity = layer_connectivity(problem, networks, tensors=True, integral=False)
    assert (
        abs(
            connectivity.endpoint_values["stored"]["train_loss"][0]
            - connectivity.endpoint_values["stored"]["train_loss"][1]
        )
        > 1e-3
    )
    for group in connectivity.groups:
        assert group.predicted == pytest.approx(group.barriers["train_loss"], abs=1e-6)


def test_a_layers_statistics_go_along_and_others_stay() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    states = []
    for shift in (0.0, 1.0):
        state = {k: v.clone() + (shift if v.is_floating_point() else 0) for k, v in net.state_dict().items()}
        states.append(state)
    inputs, targets = random_classes()
    problem = Problem(net, train=(inputs, targets))
    connectivity = layer_connectivity(problem, problem.networks(states), predict=False)
    net.eval()
    mean = sum(connectivity.endpoint_values["stored"]["train_loss"]) / 2
    for layer, prefix in (("1", "1."), ("0", "0.")):
        mixed = {
            k: (v + states[1][k]) / 2 if k.startswith(prefix) and v.is_floating_point() else v
            for k, v in states[0].items()
        }
        net.load_state_dict(mixed)
        with torch.no_grad():
            expected = float(nn.functional.cross_entropy(net(inputs), targets)) - mean
        (group,) = (g for g in connectivity.select("alone", 0) if g.layer == layer)
        assert group.barriers["train_loss"] == pytest.approx(expected, abs=1e-6)
    assert connectivity.statistics == ["stored", "reestimated"]


def test_tied_tensors_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.up.weight = self.down.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(torch.tanh(self.down(x)))

    inputs, targets = random_classes(classes=6)
    problem = Problem(Tied(), train=(inputs, targets))
    networks = problem.networks([Tied(), Tied()])
    assert networks.size == 36
    connectivity = layer_connectivity(problem, networks, nodes=12)
    assert [place.layer for place in connectivity.layers] == ["down"]
    # Of one layer alone and of everything it is the same network.
    assert connectivity.select("alone", 0)[0].barriers == connectivity.select("shallow", 0)[0].barriers
    assert connectivity.integral.integral == pytest.approx(connectivity.integral.barrier, rel=1e-6)


def test_bad_input_to_layers() -> None:
    problem = Problem(Tanh(), train=random_classes())
    with pytest.raises(LLPFError, match="between two networks, 3 are given"):
        layer_connectivity(problem, problem.networks([Tanh(1), Tanh(2), Tanh(3)]))
    with pytest.raises(LLPFError, match="have the same parameters"):
        layer_connectivity(problem, problem.networks([Tanh(1), Tanh(1)]))
    with pytest.raises(LLPFError, match="unknown order 'sideways'; known: alone"):
        layer_connectivity(problem, problem.networks([Tanh(1), Tanh(2)]), orders=["sideways"])
