"""Barriers, geometry and linear mode connectivity against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.analysis import Networks, Problem
from llpf_fast.analysis.linear import barrier, geometry, line_fractions, linear_connectivity

from .toy_networks import Tanh, product_problem, product_state, random_classes


def test_three_definitions_on_a_hand_worked_line() -> None:
    barriers = barrier([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 2.0, 3.0, 4.5, 2.0])
    assert barriers.midpoint == 3.0 - 1.5
    assert barriers.frankle == 4.5 - 1.5
    assert barriers.entezari == 4.5 - (0.25 * 1.0 + 0.75 * 2.0)
    assert barriers.at == 0.75


def test_a_valley_has_no_barrier_but_frankles_counts_unequal_ends() -> None:
    barriers = barrier([0.0, 0.5, 1.0], [1.0, 0.2, 3.0])
    assert barriers.entezari == 0.0
    assert barriers.frankle == 1.0
    assert barriers.midpoint == pytest.approx(-1.8)


def test_nan_on_the_line_makes_no_barrier_number() -> None:
    barriers = barrier([0.0, 0.25, 0.5, 1.0], [0.0, math.nan, 1.0, 0.0])
    assert math.isnan(barriers.entezari)
    assert math.isnan(barriers.frankle)
    assert barriers.midpoint == 1.0
    assert barrier([0.0, 0.5, 1.0], [0.0, math.inf, 0.0]).entezari == math.inf


@pytest.mark.parametrize("fractions", [[0.0, 0.4, 1.0], [0.1, 0.5, 1.0], [0.0, 0.5]])
def test_lines_without_ends_or_middle_are_refused(fractions: list[float]) -> None:
    with pytest.raises(LLPFError, match="0, 1/2 and 1"):
        barrier(fractions, [0.0] * len(fractions))


def test_the_middle_is_always_measured() -> None:
    assert line_fractions(4) == [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    assert line_fractions(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(LLPFError, match="at least 3"):
        line_fractions(2)


def test_angles_from_the_origin_and_from_a_base() -> None:
    a, b, base = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])
    pair = geometry(a, b)
    assert (pair.distance, pair.radius_1, pair.radius_2) == (pytest.approx(5**0.5), 1.0, 2.0)
    assert pair.angle == pytest.approx(90.0)
    from_base = geometry(a, b, base)
    # a - base = (0, -1), b - base = (-1, 1): cosine -1/sqrt(2).
    assert from_base.cosine == pytest.approx(-(0.5**0.5))
    assert from_base.angle == pytest.approx(135.0)
    assert math.isnan(geometry(a, base, base).angle)


def test_small_angles_keep_their_digits() -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    assert geometry(a, b).angle == pytest.approx(math.degrees(1e-9), rel=1e-9)


@pytest.mark.parametrize(("t", "s"), [(2.0, 0.5), (1.0, 3.0), (1.5, 1.2)])
def test_midpoint_barrier_of_the_hyperbola(t: float, s: float) -> None:
    problem = product_problem()
    networks = problem.networks([product_state(t, 1 / t), product_state(s, 1 / s)])
    line = linear_connectivity(problem, networks, points=5).lines[0]
    assert line.barriers["train_loss"].midpoint == pytest.approx((t - s) ** 4 / (32 * t**2 * s**2), rel=1e-5)


def test_opposite_branches_of_the_hyperbola() -> None:
    problem = product_problem()
    networks = problem.networks([product_state(1, 1), product_state(-1, -1)])
    line = linear_connectivity(problem, networks, points=3).lines[0]
    assert line.barriers["train_loss"].entezari == 0.5


def test_all_pairs_and_a_base() -> None:
    train, test = random_classes(), random_classes(seed=1)
    nets = [Tanh(seed) for seed in range(4)]
    problem = Problem(nets[0], train=train, test=test)
    networks = problem.networks(nets[1:], names=["a", "b", "c"])
    calls: list[tuple[int, int]] = []
    connectivity = linear_connectivity(
        problem,
        networks,
        points=3,
        base=nets[0].state_dict(),
        progress=lambda done, expected, _: calls.append((done, expected)),
    )
    assert [(line.first, line.second) for line in connectivity.lines] == [(0, 1), (0, 2), (1, 2)]
    assert calls[-1] == (9, 9)
    vectors, base = networks.vectors(), networks.flatten(nets[0].state_dict())
    row = connectivity.summary()[1]
    assert (row["first"], row["second"]) == ("a", "c")
    assert row["distance"] == pytest.approx(float((vectors[0] - vectors[2]).norm()))
    u, v = vectors[0] - base, vectors[2] - base
    assert row["base_cosine"] == pytest.approx(float(u @ v / u.norm() / v.norm()))
    middle = nets[1]
    middle.load_state_dict(networks.combine([0.5, 0, 0.5]))
    inputs, targets = test
    with torch.no_grad():
        output = middle(inputs)
    line = connectivity.lines[1]
    assert line.values["test_loss"][1] == pytest.approx(float(nn.functional.cross_entropy(output, targets)), rel=1e-5)
    assert line.values["test_error"][1] == pytest.approx(1 - float((output.argmax(1) == targets).float().mean()))
    assert line.stable == (line.barriers["test_error"].frankle <= 0.02)


def test_both_kinds_of_batchnorm_statistics() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    inputs, targets = random_classes(300)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in net.state_dict().items()}
        state["1.running_var"] = torch.rand(8) + 0.5
        states.append(state)
    problem = Problem(net, train=(inputs, targets))
    connectivity = linear_connectivity(problem, problem.networks(states), points=3)
    stored, fresh = connectivity.lines
    assert (stored.statistics, fresh.statistics) == ("stored", "reestimated")
    middle = problem.networks(states).combine([0.5, 0.5])
    expected = nn.functional.cross_entropy
    net.load_state_dict(middle)
    net.eval()
    with torch.no_grad():
        assert stored.values["train_loss"][1] == pytest.approx(float(expected(net(inputs), targets)), rel=1e-5)
        # One batch of all: what batch statistics give, but for the unbiased variance that is stored.
        net.train()
        assert fresh.values["train_loss"][1] == pytest.approx(float(expected(net(inputs), targets)), rel=2e-2)
    assert abs(stored.values["train_loss"][1] - fresh.values["train_loss"][1]) > 0.05


def test_nan_stays_visible(tmp_path) -> None:
    from llpf_fast.analysis import write_result
    from llpf_fast.report.linear import draw_linear

    problem = product_problem()
    networks = problem.networks([product_state(1e200, 1e200), product_state(-1e200, 1e200)])
    connectivity = linear_connectivity(problem, networks, points=3)
    assert math.isnan(connectivity.lines[0].barriers["train_loss"].entezari)
    text = write_result(
        tmp_path, "x", numbers=connectivity.numbers(), tables={"points": connectivity.rows()}
    ).read_text()
    assert '"train_loss_barrier_entezari": null' in text
    assert "inf" in (tmp_path / "x-points.csv").read_text()
    assert draw_linear(connectivity, tmp_path).exists()


def test_bad_input_is_named(tmp_path) -> None:
    problem = Problem(Tanh(), train=random_classes())
    one = Tanh(1).state_dict()
    with pytest.raises(LLPFError, match="at least 2 models are needed, 1 "):
        problem.networks([one])
    with pytest.raises(LLPFError, match=r"different architectures: .*body\.weight"):
        problem.networks([one, Tanh(1, hidden=9).state_dict()])
    bad = {**one, "body.bias": torch.full((8,), math.nan)}
    with pytest.raises(LLPFError, match=r"model 1: tensor 'body\.bias' has 8 NaN"):
        problem.networks([one, bad])
    with pytest.raises(LLPFError, match=r"is not the folder of a run: it has no run\.yaml"):
        problem.networks([tmp_path])
    with pytest.raises(LLPFError, match="is missing"):
        problem.networks([tmp_path / "a.pt", tmp_path / "b.pt"])
    with pytest.raises(LLPFError, match="at least two"):
        linear_connectivity(problem, Networks([one]))
    networks = problem.networks([one, Tanh(2).state_dict()])
    with pytest.raises(LLPFError, match="different architectures"):
        linear_connectivity(problem, networks, base=Tanh(1, hidden=9).state_dict())
    with pytest.raises(LLPFError, match="targets"):
        Problem(Tanh(), train=(torch.zeros(3, 6), torch.zeros(2)))
