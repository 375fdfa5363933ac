"""What bisection proves holds, what it cannot prove stays open, and a point above the threshold is met.

Most tests bound sines (by their curvature) instead of a network: any number of units on any piece in microseconds. The
last ones prove and refute paths of networks.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from llpf_fast.path.polyline import Polyline
from llpf_fast.verify import Evaluator
from llpf_fast.verify.enclosure import bisection
from llpf_fast.verify.enclosure.bisection import Limits, bisect
from llpf_fast.verify.enclosure.loss_enclosure import Bounds, LossEnclosure
from llpf_fast.verify.sample_choice import all_units, choose_units


class Sines:
    """Units with the numerators size * (1 + sin(frequency * t + phase)) + a spike; t runs over segments of length 1.

    ``rounding`` is added to every bound that is not precise. ``spike``: (its units, top, half width, height).
    """

    def __init__(self, count=40, *, size=0.5, frequency=6.0, seed=0, rounding=0.0, spike=([], 0.0, 1.0, 0.0)):
        generator = torch.Generator().manual_seed(seed)
        uniform = lambda: torch.rand(count, dtype=torch.float64, generator=generator)
        self.size = size * (-8 * uniform()).exp()
        self.frequency, self.phase = frequency * (0.2 + uniform()), 6.3 * uniform()
        self.rounding, (spiked, self.top, self.half, self.height) = rounding, spike
        self.spiked = torch.zeros(count, dtype=torch.float64)
        self.spiked[spiked] = 1.0
        self.denominators = torch.ones(count, dtype=torch.float64)
        self.calls: list[tuple[float, float, int, bool]] = []

    def values(self, t, units):
        smooth = self.size[units] * (1 + torch.sin(self.frequency[units] * t + self.phase[units]))
        return smooth + self.spiked[units] * self.height * max(0.0, 1 - abs(t - self.top) / self.half)

    def losses(self, position, units):
        return self.values(sum(position), units)

    def bounds(self, waypoint, start, end, units, *, precise=False):
        self.calls.append((waypoint + start, waypoint + end, len(units), precise))
        curved = self.size[units] * self.frequency[units] ** 2 * (end - start) ** 2 / 8
        # The chord of a tent is below it by at most its height, and by the product of slope and width.
        if waypoint + start < self.top + self.half and waypoint + end > self.top - self.half:
            curved = curved + self.spiked[units] * self.height * min(1.0, (end - start) / self.half)
        radius = curved + (0.0 if precise else self.rounding)
        first, second = self.values(waypoint + start, units), self.values(waypoint + end, units)
        return Bounds(first + radius, second + radius, first, second)

    def highest(self, segments, points=4_001):
        units = torch.arange(len(self.size))
        return max(float(self.values(t, units).mean()) for t in torch.linspace(0, segments, points).tolist())


def prove(toy, threshold, segments=1, **options):
    return bisect(toy, range(segments), threshold, all_units(toy.denominators), **options)


def assert_covers(coverage, segments):
    """Every changing segment exactly once, without gap or overlap."""
    pieces = sorted([*coverage.closed, *coverage.open], key=lambda piece: (piece.waypoint, piece.start))
    for waypoint in segments:
        here = [piece for piece in pieces if piece.waypoint == waypoint]
        assert here[0].start == 0.0
        assert here[-1].end == 1.0
        assert all(one.end == next_.start for one, next_ in itertools.pairwise(here))
    assert {piece.waypoint for piece in pieces} == set(segments)
    assert all(piece.cause is None for piece in coverage.closed)
    assert all(piece.cause is not None for piece in coverage.open)


@pytest.mark.parametrize("count", [3, 40, 2_000])
@pytest.mark.parametrize("seed", range(5))
def test_a_path_below_the_threshold_is_proved(count, seed):
    toy = Sines(count, seed=seed)
    threshold = 1.003 * toy.highest(3)
    coverage = prove(toy, threshold, 3)
    assert coverage.open == []
    assert coverage.violation is None
    assert_covers(coverage, range(3))
    assert all(piece.bound <= threshold for piece in coverage.closed)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_closed_is_low_and_its_chords_are_bounds(seed):
    """Also where the threshold is too low for all of it, or the work ends early."""
    toy = Sines(700, seed=seed, frequency=20.0)
    units = torch.arange(700)
    for factor, limits in ((1.01, Limits(evaluations=60_000)), (0.9, Limits(finest=1 / 32)), (1.1, None)):
        threshold = factor * toy.highest(2)
        coverage = prove(toy, threshold, 2, limits=limits)
        assert_covers(coverage, range(2))
        for piece in [*coverage.closed, *coverage.open]:
            for share in torch.rand(10).tolist():
                t = piece.start + share * (piece.end - piece.start)
                chord = math.inf
                if piece.bound < math.inf:
                    chord = (1 - share) * piece.start_bound + share * piece.end_bound
                loss = float(toy.losses((piece.waypoint, t), units).mean())
                assert loss <= chord * (1 + 1e-12)
                assert piece.cause is not None or loss <= threshold


def test_units_whose_bounds_are_tight_are_bounded_on_few_pieces():
    toy = Sines(4_000, frequency=30.0)
    coverage = prove(toy, 1.01 * toy.highest(1))
    assert coverage.open == []
    assert sum(call[2] for call in toy.calls) == coverage.evaluations
    narrowest = min(piece.end - piece.start for piece in coverage.closed)
    assert coverage.evaluations < 0.4 * 4_000 / narrowest


@pytest.mark.parametrize("half", [0.1, 1e-3, 1e-5])
def test_a_spike_between_waypoints_is_met_soon(half):
    """Visible in all units, or in one unit alone."""
    for units in (list(range(0, 3_000, 10)), [1_234]):
        toy = Sines(3_000, size=0.1, spike=(units, 2 + math.sqrt(0.2), half, 3_000 / len(units)))
        threshold = 0.05
        coverage = prove(toy, threshold, 4)
        assert coverage.violation is not None
        assert float(toy.losses(coverage.violation, torch.arange(3_000)).mean()) > threshold
        assert coverage.evaluations < 60 * 3_000
        assert_covers(coverage, range(4))


def test_where_the_work_starts_it_looks_at_the_highest_bounds_first():
    toy = Sines(3_000, size=0.1, spike=(list(range(3_000)), 6.3, 1e-3, 2.0))
    coverage = prove(toy, 0.05, 8)
    assert coverage.violation is not None
    assert coverage.closed == []
    assert coverage.evaluations < 5 * 3_000
    # One unit in which the pilot does not see it: 34 pieces are closed before, 331 in the order of the path.
    threshold = 1.003 * Sines(3_000, frequency=20.0).highest(8)
    hidden = prove(Sines(3_000, frequency=20.0, spike=([1_234], 6.3, 1e-3, 3_000.0)), threshold, 8)
    assert hidden.violation is not None
    assert len(hidden.closed) < 100


def test_a_point_that_is_not_finite_is_a_violation():
    class Broken(Sines):
        def values(self, t, units):
            return super().values(t, units) + (math.nan if 0.3 < t < 0.4 else 0.0)

        def bounds(self, waypoint, start, end, units, *, precise=False):
            found = super().bounds(waypoint, start, end, units)
            unknown = math.nan if start < 0.4 and end > 0.3 else 0.0
            return Bounds(found.start + unknown, found.end + unknown, found.start_estimate, found.end_estimate)

        def losses(self, position, units):
            return super().losses(position, units).nan_to_num(nan=math.inf)

    coverage = prove(Broken(), 10.0)
    assert coverage.violation is not None
    assert 0.3 < coverage.violation.fraction < 0.4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("count", [20, 2_000])
def test_bounds_that_are_not_finite_never_close(bad, count):
    class Unbounded(Sines):
        def bounds(self, waypoint, start, end, units, *, precise=False):
            found = super().bounds(waypoint, start, end, units, precise=precise)
            wild = (units == 7) & (end > 0.5)
            return Bounds(*(value.masked_fill(wild, bad) for value in (found.start, found.end)), found.start, found.end)

    coverage = prove(Unbounded(count), 10.0, limits=Limits(finest=1 / 64))
    assert coverage.violation is None
    assert max(piece.end for piece in coverage.closed) == 0.5
    assert min(piece.start for piece in coverage.open) == 0.5
    assert all(piece.bound == math.inf for piece in coverage.open)


def test_rounding_is_bounded_in_float64_where_it_is_the_gap():
    toy = Sines(300, rounding=0.05)
    threshold = toy.highest(1) + 0.01
    coverage = prove(toy, threshold)
    assert coverage.open == []
    assert 0 < coverage.precise_evaluations < coverage.evaluations
    assert sum(call[2] for call in toy.calls if call[3]) == coverage.precise_evaluations
    quiet = Sines(300)
    assert prove(quiet, threshold).precise_evaluations <= 8 * len(quiet.calls)


def test_open_pieces_say_what_would_close_them():
    toy = Sines(300)
    threshold = toy.highest(1) + 1e-4
    by_width = prove(toy, threshold, limits=Limits(finest=1 / 8))
    assert {piece.cause for piece in by_width.open} == {"width"}
    assert min(piece.end - piece.start for piece in by_width.open) == 1 / 8
    by_budget = prove(toy, threshold, 4, limits=Limits(evaluations=1_000))
    assert "budget" in {piece.cause for piece in by_budget.open}
    assert by_budget.evaluations <= 1_000 + 4 * bisection._AT_ONCE
    assert_covers(prove(Sines(2_000, frequency=20.0), threshold, 4, limits=Limits(evaluations=1_500)), range(4))
    by_time = prove(toy, threshold, 4, limits=Limits(seconds=0.0))
    assert (by_time.closed, by_time.evaluations) == ([], 0)
    assert [piece.bound for piece in by_time.open] == [math.inf] * 4

    class Rounded(Sines):
        def bounds(self, waypoint, start, end, units, *, precise=False):
            return super().bounds(waypoint, start, end, units)

    by_rounding = prove(Rounded(300, rounding=0.001), threshold, limits=Limits(finest=1 / 256))
    assert "rounding" in {piece.cause for piece in by_rounding.open}
    assert by_rounding.closed
    bounds = [piece.bound for piece in by_rounding.open]
    assert bounds == sorted(bounds, reverse=True)


def test_units_set_aside_are_taken_back_where_their_chords_leave_no_slack():
    """Half of the units sag between the ends of a wide piece, while a hump of the others takes all slack there."""

    class Crossing(Sines):
        def values(self, t, units):
            sine = 0.9 * math.sin(math.pi * t)
            return torch.where(units % 2 == 0, 1.0 - sine, sine).double()

        def bounds(self, waypoint, start, end, units, *, precise=False):
            first, second = self.values(start, units), self.values(end, units)
            # The even ones are convex: their chords are bounds. The others are below their chord and curvature.
            radius = torch.where(units % 2 == 0, 0.0, 0.9 * math.pi**2 * (end - start) ** 2 / 8)
            return Bounds(first + radius, second + radius, first, second)

    coverage = prove(Crossing(600), 0.502)
    assert coverage.open == []
    assert coverage.violation is None


def test_chords_of_wider_pieces_are_rounded_up():
    generator = torch.Generator().manual_seed(0)
    upper = torch.randn(2, 200, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-9, 1).repeat(20)
    known = bisection._Known(0.25, 0.5, upper, upper, torch.ones(200))
    start, end = 0.25 + 3 / 1024, 0.25 + 77 / 1024
    part = known.on(bisection._Part(0, start, end, torch.arange(200)))
    for computed, at in zip(part.upper, (start, end), strict=True):
        share = (Fraction(at) - Fraction(1, 4)) * 4
        for value, first, second in zip(computed.tolist(), *upper.tolist(), strict=True):
            exact = (1 - share) * Fraction(first) + share * Fraction(second)
            assert exact <= Fraction(value) <= exact + Fraction(abs(first) + abs(second)) / 10**14
    assert torch.equal(part.ratio, torch.full((200,), 256 / 74))


def test_parts_of_a_piece_keep_its_bounds():
    part = bisection._Part(2, 0.25, 0.5, torch.arange(3), bounds=(1.0, 3.0))
    found = [(each.start, each.end, each.bounds) for each in part.split(4)]
    assert found == [(0.25 + i / 16, 0.3125 + i / 16, (1 + i / 2, 1.5 + i / 2)) for i in range(4)]
    unbounded = bisection._Part(2, 0.25, 0.5, torch.arange(3), bounds=(1.0, math.inf)).split(2)
    assert [each.bounds for each in unbounded] == [(math.inf, math.inf)] * 2


def test_workers_and_seeds_change_no_proof():
    toy = Sines(5_000, frequency=20.0)
    threshold = 1.01 * toy.highest(2)
    one, two = (prove(toy, threshold, 2, workers=workers) for workers in (1, 2))
    assert (one.closed, one.open, one.evaluations) == (two.closed, two.open, two.evaluations)
    other = prove(toy, threshold, 2, seed=1)
    assert other.open == []


def test_progress_goes_up_to_what_is_closed():
    toy, shares = Sines(2_000), []
    prove(toy, 1.01 * toy.highest(3), 3, progress=lambda share, text: shares.append((share, text)))
    assert [share for share, _ in shares] == sorted(share for share, _ in shares)
    assert shares[-1][0] > 0.3
    assert all("evaluations a sample" in text for _, text in shares)


def test_segments_that_do_not_change_are_left_out():
    toy = Sines(300)
    coverage = bisect(toy, [1, 3], 1.1 * toy.highest(5), all_units(toy.denominators))
    assert_covers(coverage, [1, 3])


def test_chosen_samples_close_pieces_of_their_estimate():
    toy = Sines(20_000, frequency=10.0)
    everything = torch.arange(20_000)
    hardness = torch.stack([toy.values(t, everything) for t in (0.0, 1.0, 2.0)]).amax(0)
    choice = choose_units(hardness, toy.denominators, seed=0)
    highest = max(choice.upper(toy.values(t, choice.units)) for t in torch.linspace(0, 2, 401).tolist())
    coverage = bisect(toy, range(2), 1.005 * highest, choice)
    assert coverage.open == []
    assert {int(units) <= len(choice.units) for _, _, units, _ in toy.calls} == {True}
    for piece in coverage.closed:
        t = piece.waypoint + (piece.start + piece.end) / 2
        assert choice.upper(toy.values(t, choice.units)) <= piece.bound <= 1.005 * highest
    # Between the estimate less five standard errors and the estimate nothing can be said.
    doubtful = bisect(toy, range(2), highest * 0.999, choice)
    assert doubtful.violation is None
    assert {piece.cause for piece in doubtful.open} == {"samples"}
    assert_covers(doubtful, range(2))
    assert bisect(toy, range(2), 0.5 * highest, choice).violation is not None


def test_a_loss_just_above_the_threshold_is_never_proved():
    """Peaks anywhere, planted or of the sines, 1e-9 of their height above the threshold."""
    for seed in range(40):
        toy = Sines(30, seed=seed, frequency=3.0 + seed % 30)
        where = torch.linspace(0, 1, 100_001, dtype=torch.float64)
        waves = torch.sin(where * toy.frequency[:, None] + toy.phase[:, None])
        highest = (toy.size[:, None] * (1 + waves)).mean(0).max()
        coverage = prove(toy, float(highest) * (1 - 1e-9), limits=Limits(finest=2.0**-14))
        assert coverage.open, seed


class Tents(nn.Module):
    """A network of two inputs and three classes; its hidden units 4 to 6 can make a tent in t from a moving bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def network_path(seed, *, half=None):
    """Two states, inputs and labels; with ``half`` a spike of this half width between the waypoints."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    states = [
        {"first.weight": normal(7, 2), "first.bias": normal(7), "second.weight": normal(3, 7), "second.bias": normal(3)}
        for _ in range(2)
    ]
    if half is not None:
        top = 0.05 + 0.9 * float(torch.rand((), generator=generator))
        for t, state in enumerate(states):
            state["first.weight"][4:] = 0.0
            # relu(u + 1) - 2 relu(u) + relu(u - 1) is the tent of u = (t - top) / half.
            state["first.bias"][4:] = (t - top) / half + torch.tensor([1.0, 0.0, -1.0])
            state["second.weight"][:, 4:] = torch.outer(torch.tensor([3.0, -3.0, 0.0]), torch.tensor([1.0, -2.0, 1.0]))
    return states, normal(8, 2), torch.randint(3, (8,), generator=generator)


def mean_losses(states, inputs, labels, t):
    """The mean loss at the points ``t`` (float64 ``[n]``), in float64."""
    at = {name: (a + t.view(-1, *[1] * a.dim()) * (states[1][name] - a)) for name, a in states[0].items()}
    hidden = torch.relu(torch.einsum("pki,bi->pbk", at["first.weight"], inputs) + at["first.bias"][:, None])
    logits = torch.einsum("poi,pbi->pbo", at["second.weight"], hidden) + at["second.bias"][:, None]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(t)), reduction="none")
    return losses.view(len(t), -1).mean(1)


def highest_loss(states, inputs, labels, half):
    """Of a fine grid, refined twice around its highest point."""
    t = torch.linspace(0, 1, 4_001, dtype=torch.float64)
    if half is not None:
        first = states[0]["first.bias"][5]
        top = float(-first / (states[1]["first.bias"][5] - first))
        t = torch.cat([t, torch.linspace(top - half, top + half, 4_001, dtype=torch.float64)])
    return float(mean_losses(states, inputs, labels, t).max())


def prove_network(states, inputs, labels, threshold, dtype=torch.float32, **limits):
    evaluator = Evaluator(Tents(), None, inputs, labels, dtype=dtype)
    enclosure = LossEnclosure(Polyline(states), evaluator)
    return bisect(enclosure, [0], threshold, all_units(enclosure.denominators), limits=Limits(**limits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_point_of_a_proved_piece_of_a_network_is_above(dtype):
    """10^6 random points, in float64."""
    checked = 0
    generator = torch.Generator().manual_seed(0)
    for seed in range(10):
        path = network_path(seed)
        threshold = 1.0001 * highest_loss(*path, None)
        for factor, limits in ((1.0, {}), (0.95, {"finest": 1 / 256})):
            coverage = prove_network(*path, factor * threshold, dtype, **limits)
            assert coverage.open == [] or factor < 1
            if not coverage.closed:
                continue
            each = 50_000 // len(coverage.closed) + 1
            for piece in coverage.closed:
                share = torch.rand(each, generator=generator, dtype=torch.float64)
                losses = mean_losses(*path, piece.start + share * (piece.end - piece.start))
                chord = (1 - share) * piece.start_bound + share * piece.end_bound
                assert bool((losses <= chord + 1e-12).all())
                assert piece.bound <= factor * threshold
                checked += each
    assert checked >= 500_000


@pytest.mark.slow
def test_no_peak_just_above_the_threshold_is_proved():
    """1,000 random networks: peaks as they come, and planted spikes of widths down to 1e-5 of the segment."""
    refuted = 0
    for seed in range(1_000):
        half = None if seed % 2 else 10.0 ** -(1 + seed % 9 / 2)
        path = network_path(seed, half=half)
        threshold = highest_loss(*path, half) - 1e-6
        # In float32 the biases of a narrow spike, of 1e5, leave losses that are not those of exact arithmetic.
        dtype = torch.float32 if half is None else torch.float64
        coverage = prove_network(*path, threshold, dtype, evaluations=30_000)
        assert coverage.open, seed
        refuted += coverage.violation is not None
    assert refuted > 100
