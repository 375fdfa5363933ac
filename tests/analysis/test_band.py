"""Elastic bands on a landscape whose saddle is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from llpf_fast.analysis.elastic_band import BandSettings, across, auto_neb, insert, tangent
from llpf_fast.errors import LLPFError
from llpf_fast.find.curve import redistribute

LEFT, RIGHT = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
#: Minima of height 0 at (-1, 0) and (1, 0), joined by the valley y = 2 (1 - x^2), whose pass at (0, 2) is 1 high. The
#: straight line is 1 + 4 * 4 = 17 high.
_BEND, _STEEP, SADDLE, STRAIGHT = 2.0, 4.0, 1.0, 17.0


def height(vector: Tensor) -> Tensor:
    x, y = vector
    return (x**2 - 1) ** 2 + _STEEP * (y - _BEND * (1 - x**2)) ** 2


def gradient(vector: Tensor, round_: int) -> tuple[float, Tensor]:
    at = vector.clone().requires_grad_(True)
    loss = height(at)
    loss.backward()
    assert at.grad is not None
    return float(loss.detach()), at.grad


def measure(vector: Tensor) -> float:
    return float(height(vector))


def highest(pivots: Tensor) -> float:
    fractions = torch.linspace(0, 1, 51)
    return max(measure(a.lerp(b, f)) for a, b in itertools.pairwise(pivots) for f in fractions)


def test_auto_neb_finds_the_saddle_and_keeps_the_ends() -> None:
    settings = BandSettings(steps=3000, lr=0.02, most=4, bulge=0.02)
    band = auto_neb(LEFT, RIGHT, gradient, measure, settings)
    assert highest(torch.stack([LEFT, RIGHT])) == pytest.approx(STRAIGHT)
    assert highest(band.pivots) == pytest.approx(SADDLE, abs=0.06)
    assert torch.equal(band.pivots[0], LEFT)
    assert torch.equal(band.pivots[-1], RIGHT)
    assert band.steps <= settings.steps
    assert len(band.pivots) > settings.first + 2


def test_insertion_is_what_lowers_the_peak() -> None:
    settings = {"steps": 3000, "lr": 0.02, "bulge": 0.02}
    with_pivots = auto_neb(LEFT, RIGHT, gradient, measure, BandSettings(most=4, **settings))  # type: ignore[arg-type]
    without = auto_neb(LEFT, RIGHT, gradient, measure, BandSettings(most=0, **settings))  # type: ignore[arg-type]
    assert highest(with_pivots.pivots) < highest(without.pivots) - 0.05
    assert len(without.pivots) == 5


def test_gradient_steps_are_counted_one_a_pivot() -> None:
    calls = []

    def counted(vector: Tensor, round_: int) -> tuple[float, Tensor]:
        calls.append(round_)
        return gradient(vector, round_)

    band = auto_neb(LEFT, RIGHT, counted, measure, BandSettings(steps=100, lr=0.01))
    assert band.steps == len(calls) <= 100
    # All pivots of a round see the same batch.
    assert calls.count(0) == 3


def test_redistribution_is_along_the_polyline() -> None:
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]])
    (placed,) = redistribute(corner, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.allclose(placed, torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 1.0]]))
    (again,) = redistribute(torch.zeros(3, 2), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.equal(again, torch.zeros(3, 2))


def test_tangents_point_to_the_higher_neighbour() -> None:
    pivots = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert torch.allclose(tangent(pivots, [0.0, 1.0, 2.0], 1), torch.tensor([0.0, 1.0]))
    assert torch.allclose(tangent(pivots, [2.0, 1.0, 0.0], 1), torch.tensor([1.0, 0.0]))
    mixed = tangent(pivots, [0.0, 3.0, 2.0], 1)
    # At a maximum both count, by the larger and the smaller difference of loss: 3 ahead, 1 back.
    assert torch.allclose(mixed, torch.tensor([1.0, 3.0]) / math.sqrt(10))


def test_only_what_is_across_the_band_moves_it() -> None:
    pivots = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 1.0]])
    slopes = torch.tensor([[9.0, 9.0], [3.0, 4.0], [3.0, 4.0], [9.0, 9.0]])
    moved = across(pivots, [0.0, 1.0, 2.0, 3.0], slopes)
    assert torch.allclose(moved[1:3], torch.tensor([[0.0, 4.0], [3.0, 0.0]]))


def test_insertion_takes_the_largest_bulge_at_its_place() -> None:
    pivots = torch.tensor([[0.0], [1.0], [2.0]])
    shares = torch.tensor([0.5, 0.5], dtype=torch.float64)
    settings = BandSettings(steps=10, inside=3, most=1)
    losses = [0.0, 0.9, 0.2, 0.3, 0.4, 0.3, 0.2, 2.0, 0.0]
    new, parts = insert(pivots, shares, losses, settings)
    assert new.flatten().tolist() == [0.0, 1.0, 1.75, 2.0]
    assert parts.tolist() == [0.5, 0.375, 0.125]


def test_a_straight_rise_gets_no_pivot_and_nan_gets_one() -> None:
    pivots = torch.tensor([[0.0], [1.0], [2.0]])
    shares = torch.tensor([0.5, 0.5], dtype=torch.float64)
    settings = BandSettings(steps=10, inside=3, most=2)
    straight = [i / 8 for i in range(9)]
    assert len(insert(pivots, shares, straight, settings)[0]) == 3
    assert len(insert(pivots, shares, [*straight[:6], math.nan, *straight[7:]], settings)[0]) == 4


def test_a_diverging_band_says_so() -> None:
    with pytest.raises(LLPFError, match="diverged"):
        auto_neb(LEFT, RIGHT, gradient, measure, BandSettings(steps=3000, lr=10.0))


@pytest.mark.parametrize("wrong", [{"steps": 2}, {"steps": 50, "lr": 0.0}, {"steps": 50, "rates": ()}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LLPFError):
        BandSettings(**wrong)  # type: ignore[arg-type]
