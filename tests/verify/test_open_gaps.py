"""Undecided certificates: gaps between evaluated points, buffers, tensors that no straight line joins."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path.polyline import Position
from llpf_fast.verify import Evaluation, Refinement, certify
from llpf_fast.verify.refinement import find_gaps

NONE = Refinement(rounds=0, most_rounds=0)


def measured(function):
    """Loss as a function of the state dict's tensors as numbers."""

    def evaluate(state):
        loss = function(*(value.item() for value in state.values()))
        return Evaluation(loss, 0.0, None, 100, int(not math.isfinite(loss)))

    return evaluate


def line(*values, name="x"):
    return [{name: torch.tensor(value, dtype=torch.float64)} for value in values]


def tent(x, centre, width):
    return 0.01 + 0.24 * max(0.0, 1 - abs(x - centre) / width)


class TestGaps:
    @pytest.mark.parametrize("seed", range(5))
    def test_without_refinement_a_path_near_the_threshold_is_undecided(self, seed):
        """The curvature at the points says that the loss between them may be above the threshold."""
        loss = measured(lambda x: 0.09999 - (x - 0.4) ** 2)
        certificate = certify(line(0.0, 1.0), loss, threshold=0.1, interior=3, refinement=NONE, seed=seed)
        assert certificate.resolution["gaps_that_may_exceed"] >= 1
        assert certificate.resolution["highest_estimate_between_points"] > 0.1
        assert (certificate.connected, certificate.verdict, certificate.reasons) == (False, "undecided", [])
        assert len(certificate.undecided) == 1
        first = certificate.undecided[0]
        assert "may exceed the threshold 0.1 in" in first
        assert "between evaluated points, first between waypoint 0" in first
        assert "where the curvature allows 0." in first
        assert "larger most_rounds" in first
        closed = certify(line(0.0, 1.0), loss, threshold=0.1, interior=3, seed=seed)
        assert (closed.connected, closed.verdict, closed.undecided) == (True, "connected", [])

    @pytest.mark.parametrize(
        ("rule", "remedy"),
        [
            (Refinement(rounds=0, most_points=3), "larger most_points"),
            (Refinement(rounds=0, most_rounds=1), "larger most_rounds"),
            (Refinement(rounds=0, finest=1 / 32, most_rounds=99), "smaller finest"),
        ],
    )
    def test_the_remedy_names_the_limit_that_was_reached(self, rule, remedy):
        loss = measured(lambda x: 0.0999999 - (x - 0.4) ** 2)
        certificate = certify(line(0.0, 1.0), loss, threshold=0.1, interior=3, refinement=rule, seed=0)
        assert certificate.verdict == "undecided"
        assert remedy in certificate.undecided[0]

    def test_the_budget_limits_the_points(self):
        """Noise at every scale never closes."""
        loss = measured(lambda x: 0.0999 - 0.05 * (hash(x) % 1000) / 1000)
        rule = Refinement(rounds=2, gaps=5, most_points=40, most_rounds=99)
        certificate = certify(line(0.0, 1.0), loss, threshold=0.1, refinement=rule)
        assert certificate.verdict == "undecided"
        assert certificate.points_evaluated == 2 + 63 + 2 * 5 + 40

    def test_a_plateau_close_to_the_threshold_closes(self):
        """Far more gaps are open than a round of the search for the highest point halves."""
        wave = measured(lambda x: 0.0998 + 0.0001 * math.sin(150 * x))
        certificate = certify(line(0.0, 1.0), wave, threshold=0.1)
        assert certificate.connected, certificate.undecided
        assert certificate.points_evaluated < 350

    def test_a_short_segment_has_interior_points(self):
        """0.18 % of the path's length: its ends and its middle are below the threshold, a quarter of it is not."""
        certificate = certify(
            line(0.0, 0.0018, 1.0),
            measured(lambda x: tent(x / 0.0018, 0.25, 0.375) if x < 0.0018 else 0.01),
            threshold=0.1,
        )
        assert certificate.verdict == "not connected"

    def test_a_short_segment_is_refined_as_far_as_it_takes(self):
        """A millionth of the path's length, and a loss that is close to the threshold all along it."""
        certificate = certify(
            line(0.0, 1e-6, 1.0),
            measured(lambda x: 0.0999 + 0.00008 * math.sin(6e6 * min(x, 1e-6)) - 0.05 * max(x - 1e-6, 0)),
            threshold=0.1,
        )
        assert certificate.connected, certificate.undecided
        assert 0.0999 < certificate.max_loss < 0.1

    def test_refuted_paths_are_not_refined_further(self):
        certificate = certify(line(0.0, 1.0, 2.0), measured(lambda x: 0.0999 if x < 1 else x), threshold=0.1)
        assert certificate.verdict == "not connected"
        assert certificate.undecided == []
        assert certificate.points_evaluated <= 3 + 2 * 31 + 32

    def test_open_gaps_and_other_reasons(self):
        loss = measured(lambda x: 0.099999 - (x - 0.4) ** 2)
        certificate = certify(
            line(0.0, 1.0), loss, threshold=0.1, refinement=NONE, also_wrong=["it stops halfway"], seed=0
        )
        assert (certificate.verdict, certificate.reasons) == ("not connected", ["it stops halfway"])
        assert len(certificate.undecided) == 1

    def test_negative_losses_and_thresholds(self):
        def certified(threshold, rule=None, **options):
            loss = measured(lambda x: -3 - (x - 0.4) ** 2)
            return certify(line(0.0, 1.0), loss, threshold=threshold, refinement=rule, seed=0, **options)

        assert certified(-2.99).connected
        assert certified(-2.99999).connected
        assert certified(-2.999999, NONE).verdict == "undecided"
        above = certified(-3.01)
        assert above.verdict == "not connected"
        assert above.max_loss == pytest.approx(-3, abs=1e-4)


class TestEstimates:
    def gaps(self, *points, changing=True):
        return find_gaps({Position(0, x) if x < 1 else Position(1, 0.0): y for x, y in points}, [changing])

    def test_of_a_parabola_hold(self):
        def loss(x):
            return 0.3 - 4 * (x - 0.3) ** 2

        gaps = self.gaps(*((x, loss(x)) for x in (0, 0.1, 0.35, 0.5, 0.9, 1)))
        assert len(gaps) == 5
        for gap in gaps:
            top = max(loss(gap.start + (gap.end - gap.start) * i / 100) for i in range(101))
            assert top <= gap.estimate <= top + 4 * gap.width**2

    def test_without_curvature_anything_may_lie_between(self):
        assert [gap.estimate for gap in self.gaps((0, 0.01), (1, 0.02))] == [math.inf]
        assert [gap.estimate for gap in self.gaps((0, 0.01), (0.5, math.nan), (0.7, 0.01), (1, 0.02))] == [math.inf]
        assert self.gaps((0, 0.01), (1, 0.01), changing=False) == []

    def test_gaps_at_waypoints_have_two_bends(self):
        """The curvature is 0 at the first inner point, and not at the next."""
        losses = [(0, 0.0), (0.25, 0.0), (0.5, 0.0), (0.75, 0.1), (1, 0.0)]
        first = next(gap for gap in self.gaps(*losses) if gap.start == 0)
        assert first.estimate > 0.02
        last = next(gap for gap in self.gaps(*((1 - x, y) for x, y in losses)) if gap.end == 1)
        assert last.estimate > 0.02


class TestRandomPoints:
    def points(self, **options):
        certificate = certify(line(0.0, 1.0, 1.5), measured(lambda x: 0.01), threshold=0.1, refinement=NONE, **options)
        return certificate.resolution["seed"], [(p.at.waypoint, p.at.fraction) for p in certificate.points]

    def test_a_new_seed_each_time_and_it_is_recorded(self):
        (first, here), (second, there) = self.points(), self.points()
        assert first != second
        assert here != there
        assert self.points(seed=first) == (first, here)
        assert self.points(seed=0)[0] == 0

    @pytest.mark.parametrize(("interior", "count"), [(None, 63), (1, 3), (3, 3), (7, 7), (8, 8)])
    @pytest.mark.parametrize("seed", range(20))
    def test_they_are_nearly_equally_spaced(self, interior, count, seed):
        _, points = self.points(interior=interior, seed=seed)
        for waypoint, expected in ((0, count), (1, count if interior else 31)):
            inside = [f for number, f in points if number == waypoint and f > 0]
            assert len(set(inside)) == expected
            assert 0.5 in inside
            gaps = [(b - a) * (expected - 1) for a, b in itertools.pairwise([0, *inside, 1])]
            assert 1 / 16 - 1e-9 <= min(gaps) <= max(gaps) <= 5 / 4
            assert len({round(gap, 9) for gap in gaps}) > expected // 2

    def test_every_place_may_be_evaluated(self):
        """A path cannot be high where no seed evaluates it."""
        inside = [f for seed in range(400) for n, f in self.points(interior=3, seed=seed)[1] if n == 0 and f > 0]
        assert {int(f * 32) for f in inside} >= set(range(1, 31))

    def test_a_path_that_is_low_at_equally_spaced_points_only(self):
        """And high between them."""

        def loss(x):
            off = abs(x * 64 - round(x * 64))
            return 0.2 if off > 0.1 else 0.01

        assert certify(line(0.0, 1.0), measured(loss), threshold=0.1).verdict == "not connected"


class TestBuffers:
    def path(self, *points, names=("w",)):
        keys = ("w", "bn.running_mean")
        states = [{k: torch.tensor(v, dtype=torch.float64) for k, v in zip(keys, at, strict=True)} for at in points]
        return states, set(names)

    @pytest.mark.parametrize("step", [0.0, 0.001])
    def test_statistics_that_change_where_parameters_hardly_do(self, step):
        states, names = self.path((0, 0), (step, 1), (1, 1))
        certificate = certify(
            states, measured(lambda w, b: tent(b, 0.25, 0.375)), threshold=0.1, parameter_names=names, straight_points=0
        )
        assert certificate.verdict == "not connected"
        assert certificate.max_loss == pytest.approx(0.25, abs=0.01)
        assert certificate.lengths == {"arc": 1, "straight": 1, "buffers_arc": 1, "buffers_straight": 1}

    def test_each_kind_is_spaced_by_its_own_scale(self):
        """Variances a thousand times as large as weights leave the weights their points, and the other way round."""
        states, names = self.path((0, 0), (1, 1), (1.001, 1000), (2, 1001))
        certificate = certify(
            states, measured(lambda w, b: 0.01), threshold=0.1, parameter_names=names, refinement=NONE
        )
        inside = [p.at.waypoint for p in certificate.points if p.at.fraction > 0]
        assert [inside.count(i) for i in range(3)] == [31, 63, 31]
        assert [p.at.arc for p in certificate.points if p.at.fraction == 0] == pytest.approx([0, 1 / 2, 1.001 / 2, 1])

    def test_nothing_but_buffers_changes(self):
        states, names = self.path((0, 0), (0, 1), (0, 3))
        certificate = certify(states, measured(lambda w, b: 0.01), threshold=0.1, parameter_names=names)
        assert certificate.connected
        assert (certificate.lengths["arc"], certificate.lengths["buffers_arc"]) == (0, 3)
        assert [p.at.arc for p in certificate.points if p.at.fraction == 0] == pytest.approx([0, 1 / 3, 1])

    def test_complex_tensors_have_a_length_and_points(self):
        states = [{"w": torch.tensor(value, dtype=torch.complex64)} for value in (0j, 3 + 4j, 3 + 4j)]
        certificate = certify(
            states,
            lambda state: Evaluation(float(state["w"].imag), 0.0, None, 1, 0),
            threshold=4.5,
            refinement=NONE,
        )
        assert certificate.connected
        assert certificate.lengths["arc"] == certificate.lengths["straight"] == 5
        assert certificate.resolution["most_interior_points"] == 63
        assert [p.train_loss for p in certificate.points if p.at.fraction == 0.5] == [2]


class TestJumps:
    @pytest.mark.parametrize(
        ("a", "b", "kind"), [(0, 1, "integers"), (False, True, "booleans"), ([1, 2], [1, 3], "integers")]
    )
    def test_no_line_leads_from_integer_to_integer(self, a, b, kind):
        states = [
            {"w": torch.tensor(float(w)), "mask": torch.tensor(mask)} for w, mask in ((0, a), (1, a), (2, b), (3, a))
        ]
        certificate = certify(states, lambda state: Evaluation(0.01, 0.0, None, 1, 0), threshold=0.1)
        assert (certificate.connected, certificate.verdict, certificate.reasons) == (False, "undecided", [])
        assert certificate.undecided == [
            f"the {kind} of the tensor mask change between waypoints 1 and 2: no straight line leads from one to the "
            "other (and 1 more)"
        ]

    def test_counters_of_batches_are_harmless(self):
        states = [
            {"w": torch.tensor(float(i)), "bn.num_batches_tracked": torch.tensor(i), "mask": torch.tensor([True])}
            for i in range(3)
        ]
        assert certify(states, lambda state: Evaluation(0.01, 0.0, None, 1, 0), threshold=0.1).connected


class TestNotFinite:
    def test_values_that_stay_infinite_do_not_count(self):
        mask = torch.tensor([0.0, -math.inf, math.nan])
        states = [{"w": torch.tensor(float(i)), "mask": mask.clone()} for i in range(3)]
        masks = []

        def evaluate(state):
            masks.append(state["mask"])
            return Evaluation(0.01, 0.0, None, 1, 0)

        certificate = certify(states, evaluate, threshold=0.1)
        assert certificate.connected, certificate.reasons
        assert certificate.lengths["arc"] == 2
        assert all(torch.equal(value, mask) or value.isnan()[2] for value in masks)
        assert all(value[:2].tolist() == [0, -math.inf] for value in masks)

    @pytest.mark.parametrize("other", [0.0, math.inf, math.nan])
    def test_values_that_become_infinite_are_a_reason(self, other):
        """Even where the loss does not show it."""
        states = [{"w": torch.tensor(float(i)), "mask": torch.tensor([0.0, value])} for i, value in
                  enumerate((-math.inf, -math.inf, other))]  # fmt: skip
        certificate = certify(states, lambda state: Evaluation(0.01, 0.0, None, 1, 0), threshold=0.1)
        assert certificate.verdict == "not connected"
        assert "tensor mask" in certificate.reasons[0]
        assert "between waypoints 1 and 2" in certificate.reasons[0]

    @pytest.mark.parametrize("where", [0.0, 1.0])
    def test_a_nan_that_is_not_counted(self, where):
        """An evaluation that says that all samples were finite, and a mean that is not."""
        states = line(0.0, 1.0)
        certificate = certify(
            states, lambda s: Evaluation(math.nan if s["x"] == where else 0.01, math.nan, None, 1, 0), threshold=0.1
        )
        assert certificate.verdict == "not connected"
        assert math.isnan(certificate.max_loss)

    @pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
    def test_thresholds(self, threshold):
        with pytest.raises(LLPFError, match="finite number"):
            certify(line(0.0, 1.0), measured(lambda x: 0.0), threshold=threshold)

    def test_a_nan_accuracy_is_the_lowest(self):
        def test(state):
            return Evaluation(0.1, None, math.nan if state["x"] == 0.5 else 0.9, 1, 0)

        certificate = certify(line(0.0, 1.0), measured(lambda x: 0.0), test, threshold=0.1)
        assert math.isnan(certificate.min_test_accuracy)
        assert certificate.min_test_accuracy_at.fraction == 0.5


class TestForm:
    """Every waypoint must have the same tensors: otherwise there is no line, and no certificate."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"w": torch.zeros(3)}, r"the tensor w has shape \[2\] in waypoint 1 and \[3\] in waypoint 2"),
            (
                {"w": torch.zeros(2, dtype=torch.float64)},
                r"the tensor w has dtype torch.float32 in waypoint 1 and torch.float64 in waypoint 2",
            ),
            ({"extra": torch.zeros(1)}, "the tensor extra of waypoint 2 is missing in waypoint 1"),
            ({"w": None}, "the tensor w of waypoint 1 is missing in waypoint 2"),
            ({"w": 3}, "w of waypoint 2 is no tensor but of type int"),
        ],
    )
    def test_a_change_is_an_error(self, change, message):
        state = {"w": torch.ones(2), "b": torch.ones(1)}
        odd = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(LLPFError, match=message):
            certify([state, state, odd], lambda state: Evaluation(0.0, None, None, 1, 0), threshold=0.1)


class TestRecord:
    def certify(self, evaluate=None, **options):
        return certify(line(0.0, 1.0), evaluate or measured(lambda x: 0.01), threshold=0.1, **options)

    def test_differences_and_notes_do_not_change_the_verdict(self):
        certificate = self.certify(differs=iter(["another loss"]), notes=("short",))
        assert certificate.connected
        assert (certificate.differs, certificate.notes) == (["another loss"], ["short"])
        empty = self.certify().as_dict()
        assert (empty["differs"], empty["notes"], empty["undecided"], empty["verdict"]) == ([], [], [], "connected")

    def test_how_the_loss_follows_from_batches(self):
        def evaluate(reduction):
            values = {"standard_error": 0.1, "accuracy": None, "samples": 9, "not_finite": 0, "statistics": "stored"}
            return lambda state: SimpleNamespace(
                loss=0.01, **values, reduction=reduction if state["x"] == 1 else "exact"
            )

        assert self.certify().evaluation["train"]["loss_is"] == "exact"
        assert self.certify(evaluate("exact")).evaluation["train"]["loss_is"] == "exact"
        assert self.certify(evaluate("batch means")).evaluation["train"]["loss_is"] == "mean of batch means"
