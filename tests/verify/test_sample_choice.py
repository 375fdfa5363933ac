"""Which samples are chosen, and what is said of all samples from theirs."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llpf_fast.errors import LLPFError
from llpf_fast.verify.sample_choice import all_units, choose_units

COUNT = 8_000


def heavy_tailed(count, seed):
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(2).exp()


def ones(count):
    return torch.ones(count, dtype=torch.float64)


def test_all_units_give_the_loss_of_the_set_rounded_outward():
    numerators, denominators = heavy_tailed(1_000, 0), heavy_tailed(1_000, 1)
    choice = all_units(denominators)
    exact = sum(map(Fraction, numerators.tolist())) / sum(map(Fraction, denominators.tolist()))
    assert choice.complete
    assert choice.seed is None
    assert choice.lower(numerators) <= exact <= choice.upper(numerators)
    assert choice.upper(numerators) == pytest.approx(choice.lower(numerators), rel=1e-11)
    assert float((choice.weights * numerators).sum()) == pytest.approx(float(exact))


def test_the_hardest_are_chosen_and_others_at_random():
    hardness = heavy_tailed(COUNT, 0)
    choice = choose_units(hardness, ones(COUNT), seed=7)
    assert (choice.hardest, choice.others, len(choice.units)) == (500, COUNT - 500, 2_500)
    assert choice.strata == ((500, 500), (1_000, 500), (2_000, 500), (4_000, 500))
    ranks = torch.empty(COUNT, dtype=torch.int64)
    ranks[hardness.argsort(descending=True)] = torch.arange(COUNT)
    assert len(set(choice.units.tolist())) == 2_500
    start = 0
    for part, size in zip(choice.units.split(500), (500, 500, 1_000, 2_000, 4_000), strict=True):
        assert start <= int(ranks[part].min()) < int(ranks[part].max()) < start + size
        assert abs(float(ranks[part].double().mean()) / size - start / size - 0.5) < 0.06
        start += size
    assert torch.equal(choose_units(hardness, ones(COUNT), seed=7).units, choice.units)
    assert not torch.equal(choose_units(hardness, ones(COUNT), seed=8).units, choice.units)
    assert len(choose_units(heavy_tailed(60_000, 0), ones(60_000)).units) == 4_000


def test_the_seed_of_a_draw_is_new_each_time_and_recorded():
    hardness = heavy_tailed(COUNT, 0)
    one, other = choose_units(hardness, ones(COUNT)), choose_units(hardness, ones(COUNT))
    assert one.seed != other.seed
    assert torch.equal(choose_units(hardness, ones(COUNT), seed=one.seed).units, one.units)


def test_a_loss_that_is_not_finite_is_hardest():
    hardness = heavy_tailed(COUNT, 0)
    hardness[100], hardness[200] = math.nan, math.inf
    assert {100, 200} <= set(choose_units(hardness, ones(COUNT)).units[:500].tolist())


def test_few_units_are_all_chosen():
    assert choose_units(heavy_tailed(2_999, 0), ones(2_999)).complete
    choice = choose_units(heavy_tailed(3_000, 0), ones(3_000), drawn=300)
    assert (len(choice.units), choice.complete) == (1_400, False)


def test_what_makes_no_estimate_is_refused():
    with pytest.raises(LLPFError, match="drawn must be at least 2"):
        choose_units(heavy_tailed(COUNT, 0), ones(COUNT), drawn=1)
    with pytest.raises(LLPFError, match="the denominators of the loss sum to 0"):
        all_units(0 * ones(5))


def test_the_estimate_is_the_formula_of_its_docstring():
    losses = heavy_tailed(COUNT, 1)
    choice = choose_units(losses, 2 * ones(COUNT), seed=0)
    hard, *parts = losses[choice.units].split(500)
    sizes = 500, 1_000, 2_000, 4_000
    total = hard.sum() + sum(size / 500 * part.sum() for size, part in zip(sizes, parts, strict=True))
    variances = [size * (size - 500) / 500 * part.var() for size, part in zip(sizes, parts, strict=True)]
    error = math.sqrt(sum(variances))
    assert choice.upper(losses[choice.units]) == pytest.approx(float(total + 5 * error) / (2 * COUNT))
    assert choice.lower(losses[choice.units]) == pytest.approx(float(total - 5 * error) / (2 * COUNT))


def test_the_truth_is_rarely_outside_the_estimate():
    """Losses at another point than the one that chose the hardest: log-normal, with a correlation of 0.8."""
    choosing = heavy_tailed(COUNT, 0)
    losses = choosing**0.8 * heavy_tailed(COUNT, 1) ** 0.6
    truth, missed, within_one = float(losses.mean()), 0, 0
    for seed in range(1_000):
        choice = choose_units(choosing, ones(COUNT), seed=seed)
        upper, lower = choice.upper(losses[choice.units]), choice.lower(losses[choice.units])
        missed += not lower <= truth <= upper
        within_one += abs(truth - (upper + lower) / 2) <= (upper - lower) / 10
    assert missed <= 2
    # One standard error: 68 % of normal sums.
    assert 600 < within_one < 780


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_the_estimate_of_a_chord_is_below_the_chord_of_estimates(seed, share):
    choice = choose_units(heavy_tailed(3_000, 0), ones(3_000), drawn=20, seed=seed)
    first, second = heavy_tailed(len(choice.units), seed), heavy_tailed(len(choice.units), seed + 1)
    first, second = first * (first > 1), second * (second > 2)
    between = choice.upper((1 - share) * first + share * second)
    assert between <= ((1 - share) * choice.upper(first) + share * choice.upper(second)) * (1 + 1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("unit", [0, -1])
def test_what_is_not_finite_is_never_low(value, unit):
    for choice in (all_units(ones(COUNT)), choose_units(heavy_tailed(COUNT, 0), ones(COUNT))):
        numerators = torch.zeros(len(choice.units), dtype=torch.float64)
        numerators[unit] = value
        assert choice.upper(numerators) == choice.lower(numerators) == math.inf
