"""Bezier curves and polychains, against what can be computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llpf_fast.analysis.curve import FitSettings, fit
from llpf_fast.errors import LLPFError
from llpf_fast.find.curve import Bezier, Curve, PolyChain, point, straight

A = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
B = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
CENTRE = torch.tensor([2.0, -1.0, 4.0], dtype=torch.float64)
CURVATURE = torch.tensor([1.0, 1.5, 0.75], dtype=torch.float64)


def quadratic(vector: Tensor, round_: int) -> tuple[float, Tensor]:
    away = vector - CENTRE
    return float((CURVATURE * away**2).sum() / 2), CURVATURE * away


@pytest.mark.parametrize("curve", [Bezier(), Bezier(3), PolyChain(), PolyChain(4)])
def test_ends_are_exact_and_weights_sum_to_one(curve: Curve) -> None:
    nodes = straight(curve, A, B)
    nodes[1] = CENTRE
    assert torch.equal(point(curve, nodes, 0.0), A)
    assert torch.equal(point(curve, nodes, 1.0), B)
    for t in (0.0, 0.2, 0.5, 0.77, 1.0):
        assert sum(curve.weights(t)) == pytest.approx(1.0, abs=1e-14)


def test_quadratic_bezier_is_the_papers_formula() -> None:
    nodes = torch.stack([A, CENTRE, B])
    t = 0.3
    expected = (1 - t) ** 2 * A + 2 * t * (1 - t) * CENTRE + t**2 * B
    assert torch.allclose(point(Bezier(), nodes, t), expected, atol=1e-14)


def test_polychain_passes_through_its_nodes_and_is_straight_between() -> None:
    nodes = torch.stack([A, CENTRE, 2 * CENTRE, B])
    chain = PolyChain(2)
    for i, node in enumerate(nodes):
        assert torch.allclose(point(chain, nodes, i / 3), node, atol=1e-12)
    assert torch.allclose(point(chain, nodes, 0.5), 1.5 * CENTRE, atol=1e-12)


def test_fitted_bezier_is_the_optimum_of_a_quadratic() -> None:
    # d/dc of E_t L = 0 gives c = 5/2 centre - 3/4 (a + b), whatever the curvature.
    settings = FitSettings(steps=10_000, lr=0.003)
    nodes = fit(Bezier(), straight(Bezier(), A, B), quadratic, settings)
    assert torch.allclose(nodes[1], 2.5 * CENTRE - 0.75 * (A + B), atol=0.05)
    assert torch.equal(nodes[0], A)
    assert torch.equal(nodes[2], B)


def test_fitted_polychain_is_the_optimum_of_a_quadratic() -> None:
    # With the hat w = 1 - |2t - 1|: E w^2 = 1/3, E w = 1/2, E w w_a = E w w_b = 1/12.
    settings = FitSettings(steps=10_000, lr=0.003)
    nodes = fit(PolyChain(), straight(PolyChain(), A, B), quadratic, settings)
    assert torch.allclose(nodes[1], 1.5 * CENTRE - 0.25 * (A + B), atol=0.05)


def test_a_fit_repeats_bit_for_bit_and_depends_on_its_seed() -> None:
    first, second, other = (
        fit(Bezier(), straight(Bezier(), A, B), quadratic, FitSettings(steps=50, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_weight_decay_pulls_the_curve_toward_the_origin() -> None:
    free, pulled = (
        fit(Bezier(), straight(Bezier(), A, B), quadratic, FitSettings(2000, lr=0.05, weight_decay=decay))
        for decay in (0.0, 1.0)
    )
    assert pulled[1].norm() < free[1].norm()


def test_a_diverging_fit_says_so() -> None:
    with pytest.raises(LLPFError, match=r"diverged after .* learning rate"):
        fit(Bezier(), straight(Bezier(), A, B), quadratic, FitSettings(steps=2_000, lr=50.0))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 5, "lr": -1.0}, {"steps": 5, "lr": float("nan")}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LLPFError):
        FitSettings(**wrong)  # type: ignore[arg-type]
