import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model
from llpf_fast.path.polyline import Polyline, Position
from llpf_fast.verify import Evaluation, Evaluator, Refinement, certify


def point(*values):
    return {"x": torch.tensor(values, dtype=torch.float64)}


def measured(function, *, samples=1000, error=0.0, accuracy=None):
    """An evaluation whose loss is ``function`` of the point's coordinates."""

    def evaluate(state):
        loss = function(*state["x"].tolist())
        return Evaluation(loss, error, accuracy, samples, int(not math.isfinite(loss)))

    return evaluate


def bump(centre, width, height, floor=0.01):
    return measured(lambda x: floor + height * math.exp(-(((x - centre) / width) ** 2)))


LINE = [point(0.0), point(1.0)]
NONE = Refinement(rounds=0, most_rounds=0)


class TestHighestLoss:
    @pytest.mark.parametrize("peak", [0.0, 0.13, 0.3, 0.5, 0.77, 1.0])
    def test_of_a_quadratic(self, peak):
        certificate = certify(LINE, measured(lambda x: 0.09 - (x - peak) ** 2), threshold=0.1, interior=3)
        assert certificate.connected
        assert certificate.max_loss_at.waypoint + certificate.max_loss_at.fraction == pytest.approx(peak, abs=1 / 64)
        assert 0.09 - (1 / 64) ** 2 <= certificate.max_loss <= 0.09
        assert certificate.max_loss_standard_error is None
        assert (certificate.start_loss, certificate.destination_loss) == (
            pytest.approx(0.09 - peak**2),
            pytest.approx(0.09 - (1 - peak) ** 2),
        )

    def test_between_waypoints_that_are_low(self):
        """Corners alone would pass."""
        certificate = certify([point(0.0), point(1.0), point(2.0)], bump(1.5, 0.1, 1.0), threshold=0.1)
        assert max(certificate.start_loss, certificate.destination_loss) < 0.1
        assert not certificate.connected
        assert (certificate.max_loss_at.waypoint, certificate.max_loss_at.fraction) == (1, 0.5)
        assert certificate.max_loss == pytest.approx(1.01)
        assert certificate.max_loss_at.arc == pytest.approx(0.75)
        assert "1.01 at waypoint 1 + 0.5" in certificate.reasons[0]
        assert (certificate.verdict, certificate.undecided) == ("not connected", [])

    @pytest.mark.parametrize("centre", [0.36, 0.41, 0.64])
    def test_refinement_finds_what_the_first_points_miss(self, centre):
        loss = bump(centre, 0.12, 0.1, floor=0.02)
        coarse = certify(LINE, loss, threshold=0.1199, interior=3, refinement=NONE, seed=11)
        assert coarse.max_loss < 0.1199
        fine = certify(LINE, loss, threshold=0.1199, interior=3, seed=11)
        assert not fine.connected
        assert fine.max_loss == pytest.approx(0.12, abs=0.0001)

    def test_refinement_spends_where_the_loss_is_high(self):
        line = [point(float(i)) for i in range(20)]
        certificate = certify(
            line, bump(7.3, 1.0, 0.09), threshold=0.2, interior=1, refinement=Refinement(rounds=3), seed=0
        )
        extra = certificate.points_evaluated - (20 + 19 * 3)
        assert extra == 24
        close = [p.at.waypoint for p in certificate.points]
        spent = [i for i in range(19) if close.count(i) > 4]
        assert spent
        assert all(4 <= i <= 10 for i in spent)
        assert certificate.resolution["gaps_that_may_exceed"] == 0

    def test_gaps_have_a_finest_width(self):
        rule = Refinement(rounds=50, gaps=100, most_rounds=50, finest=1 / 64)
        certificate = certify(LINE, bump(0.5, 0.1, 1.0), threshold=2.0, interior=1, refinement=rule)
        assert 1 / 64 <= certificate.resolution["narrowest_gap"] <= certificate.resolution["widest_gap"] < 1 / 32

    @pytest.mark.parametrize(("segments", "inside"), [(1, 63), (10, 7), (16, 3), (64, 3), (400, 3)])
    def test_every_segment_has_interior_points(self, segments, inside):
        line = [point(float(i)) for i in range(segments + 1)]
        certificate = certify(line, measured(lambda x: 0.0), threshold=0.1, refinement=Refinement(rounds=0))
        assert certificate.points_evaluated == segments + 1 + segments * inside
        assert (
            certificate.resolution["fewest_interior_points"] == certificate.resolution["most_interior_points"] == inside
        )
        assert certificate.resolution["widest_gap"] <= 1 / 32

    def test_long_segments_have_more(self):
        """And segments that change nothing have none."""
        line = [point(float(x)) for x in (0, 1, 2, 2, 100)]
        certificate = certify(line, measured(lambda x: 0.0), threshold=0.1, refinement=Refinement(rounds=0))
        inside = [p.at.waypoint for p in certificate.points if p.at.fraction > 0]
        assert [inside.count(i) for i in range(4)] == [3, 3, 0, 63]


class TestVerdict:
    def test_threshold_below_the_endpoints(self):
        certificate = certify(LINE, measured(lambda x: 0.2), threshold=0.1)
        assert not certificate.connected
        assert certificate.start_loss == certificate.destination_loss == 0.2
        assert f"at {certificate.points_evaluated} of {certificate.points_evaluated} points" in certificate.reasons[0]

    def test_at_the_threshold_is_connected(self):
        assert certify(LINE, measured(lambda x: 0.1), threshold=0.1).connected

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
    def test_not_finite(self, value, where):
        certificate = certify(LINE, measured(lambda x: value if x == where else 0.01), threshold=0.1, interior=1)
        assert not certificate.connected
        assert not math.isfinite(certificate.max_loss)
        assert certificate.max_loss_at.waypoint + certificate.max_loss_at.fraction == where
        assert f"not finite at 1 of {certificate.points_evaluated} points" in certificate.reasons[0]
        assert f"{certificate.max_loss_at}" in certificate.reasons[0]

    def test_one_sample_that_is_not_finite(self):
        """A loss function may skip a NaN; a certificate may not."""
        certificate = certify(LINE, lambda state: Evaluation(0.01, None, None, 10, 1), threshold=0.1)
        assert not certificate.connected

    def test_nan_in_a_waypoint(self):
        certificate = certify(
            [point(0.0), point(math.nan), point(2.0)], measured(lambda x: 0.01 + 0 * x), threshold=0.1
        )
        assert not certificate.connected
        assert certificate.max_loss_at.waypoint in (0, 1)
        assert all(0 <= p.at.arc <= 1 for p in certificate.points)

    def test_other_reasons(self):
        certificate = certify(LINE, measured(lambda x: 0.0), threshold=0.1, also_wrong=["it stops halfway"])
        assert (certificate.connected, certificate.reasons) == (False, ["it stops halfway"])

    def test_one_waypoint(self):
        certificate = certify([point(0.0)], measured(lambda x: 0.05), threshold=0.1)
        assert (certificate.points_evaluated, certificate.segments, certificate.lengths["arc"]) == (1, 0, 0.0)

    def test_refusals(self):
        with pytest.raises(LLPFError, match="no waypoints"):
            certify([], measured(lambda x: 0.0), threshold=0.1)
        with pytest.raises(LLPFError, match="threshold"):
            certify(LINE, measured(lambda x: 0.0), threshold=math.nan)
        with pytest.raises(LLPFError, match="inside each segment"):
            certify(LINE, measured(lambda x: 0.0), threshold=0.1, interior=0)


class TestScreening:
    def certify(self, screened, full, *, error=0.001, **options):
        line = [point(float(i)) for i in range(11)]
        return certify(
            line,
            measured(screened, samples=10, error=error),
            threshold=0.1,
            full_train=measured(full, samples=60),
            interior=1,
            refinement=NONE,
            seed=0,
            **options,
        )

    def test_endpoints_and_worst_points_on_all_samples(self):
        certificate = self.certify(lambda x: 0.05 - 0.001 * x, lambda x: 0.051 - 0.001 * x, worst=4)
        on_all = {p.at.waypoint + p.at.fraction for p in certificate.points if p.train_samples == 60}
        highest = sorted({p.at.waypoint + p.at.fraction for p in certificate.points})[:20]
        assert on_all <= {*highest, 10}
        assert {0, 10} < on_all
        assert certificate.connected
        assert certificate.max_loss == pytest.approx(0.051)
        assert certificate.max_loss_standard_error is None
        for p in certificate.points:
            if p.train_samples == 60:
                assert p.standard_error is None
                assert p.screened_loss == pytest.approx(p.train_loss - 0.001)
            else:
                assert (p.standard_error, p.screened_loss) == (0.001, None)
        train = certificate.evaluation["train"]
        assert (train["samples"], train["screening_samples"], train["screened"]) == (60, 10, True)
        assert train["points_on_all_samples"] == len(on_all) == 5

    def test_the_worst_points_are_not_all_of_one_peak(self):
        certificate = certify(
            [point(float(i)) for i in range(11)],
            measured(lambda x: 0.05 - 0.001 * x, samples=10, error=0.001),
            threshold=0.1,
            full_train=measured(lambda x: 0.05 - 0.001 * x, samples=60),
            interior=63,
            refinement=NONE,
            worst=4,
        )
        on_all = [p.at.arc for p in certificate.points if p.train_samples == 60]
        assert len(on_all) == 5
        assert all(b - a >= 1 / 128 for a, b in itertools.pairwise(on_all))

    def test_near_the_threshold_the_full_set_decides(self):
        """0.098 is within three errors of 0.001 of 0.1, 0.09 is not."""

        def hill(x):
            return 0.098 - 0.008 * min(abs(x - 4), 1)

        near = self.certify(hill, lambda x: hill(x) + 0.0002, worst=1)
        on_all = {p.at.waypoint + p.at.fraction for p in near.points if p.train_samples == 60}
        within = {p.at.waypoint + p.at.fraction for p in near.points if hill(p.at.waypoint + p.at.fraction) > 0.097}
        assert on_all >= {0, 10, *within}
        assert 2 not in on_all
        assert near.max_loss == pytest.approx(0.0982)
        assert near.reasons == []
        above = self.certify(hill, lambda x: 0.101 if x == 4 else hill(x), worst=1)
        assert not above.connected
        assert (above.max_loss, above.max_loss_at.waypoint) == (0.101, 4)

    def test_screened_above_but_truly_below(self):
        """Everywhere the full set's loss is 0.005 lower: that counts for the gaps beside the highest point too."""

        def screened(x):
            return 0.104 - 0.001 * (x - 3) ** 2

        certificate = self.certify(screened, lambda x: screened(x) - 0.005, worst=1)
        assert certificate.connected, certificate.undecided
        assert certificate.max_loss == pytest.approx(0.099)
        assert certificate.resolution["gaps_that_may_exceed"] == 0

    def test_below_on_the_subset_but_truly_above(self):
        certificate = self.certify(lambda x: 0.098, lambda x: 0.102 if x == 7 else 0.098, worst=1)
        assert certificate.verdict == "not connected"
        assert certificate.max_loss == 0.102
        assert "0.102 at waypoint 7, above" in certificate.reasons[0]

    @pytest.mark.parametrize("error", [None, 0.0, math.nan])
    def test_an_unknown_error_decides_nothing(self, error):
        """Far below on the subset, above on all samples: the subset did not say how far it may be off."""
        certificate = self.certify(lambda x: 0.01, lambda x: 0.2 if x == 7 else 0.01, error=error, worst=1)
        assert certificate.verdict == "not connected"
        assert certificate.max_loss_at.waypoint == 7
        honest = self.certify(lambda x: 0.01, lambda x: 0.01, error=error, worst=1)
        assert honest.connected
        assert honest.evaluation["train"]["points_on_all_samples"] == honest.points_evaluated

    def test_a_subset_that_proved_too_easy_decides_nothing(self):
        """Each end is 0.03 above what the subset says, thirty standard errors: then 0.05 says nothing of 0.1."""
        certificate = self.certify(lambda x: 0.05, lambda x: 0.12 if x == 7 else 0.08, worst=1)
        assert certificate.verdict == "not connected"
        assert certificate.max_loss == 0.12

    def test_gaps_are_evaluated_with_the_errors_of_their_ends(self):
        """Three of the subset's standard errors and the curvature reach the threshold: the ends need all samples."""

        def screened(x):
            return 0.0955 + 0.001 * math.cos(2 * math.pi * x)

        certificate = self.certify(screened, lambda x: screened(x) - 0.0001, worst=1)
        assert certificate.connected, certificate.undecided
        on_all = [p.screened_loss for p in certificate.points if p.train_samples == 60]
        assert 3 < len(on_all) < 20
        assert min(on_all) > 0.096

    def test_the_reason_names_a_point_on_all_samples(self):
        certificate = self.certify(lambda x: 0.2 - 0.001 * abs(x - 4), lambda x: 0.101 if x == 4 else 0.05, worst=1)
        assert "loss is 0.101 at waypoint 4, above" in certificate.reasons[0]

    def test_highest_point_is_known_on_all_samples(self):
        """The subset is harder than the whole: full values of the worst fall below the screened rest."""
        certificate = self.certify(lambda x: 0.05 + 0.001 * x, lambda x: 0.045 + 0.001 * x, worst=12)
        assert certificate.max_loss == pytest.approx(0.055)
        assert certificate.max_loss_at.waypoint == 10
        assert certificate.max_loss_standard_error is None

    def test_what_stays_screened_has_an_error(self):
        certificate = self.certify(lambda x: 0.05, lambda x: 0.01, worst=2)
        assert certificate.max_loss_standard_error == 0.001
        assert certificate.max_loss == 0.05

    def test_truly_above_ends_the_work(self):
        calls = []

        def full(x):
            calls.append(x)
            return 0.11

        certificate = self.certify(lambda x: 0.11, full, worst=2)
        assert not certificate.connected
        assert len(calls) <= 4

    def test_nan_on_the_subset(self):
        certificate = self.certify(lambda x: math.nan if x == 5 else 0.01, lambda x: math.nan if x == 5 else 0.01)
        assert not certificate.connected


class TestGeometry:
    def test_lengths_and_locations(self):
        line = [point(0.0, 0.0), point(3.0, 0.0), point(3.0, 4.0)]
        certificate = certify(line, measured(lambda x, y: y / 100), threshold=0.1, interior=1)
        assert certificate.lengths == {
            "arc": pytest.approx(7),
            "straight": pytest.approx(5),
            "buffers_arc": 0,
            "buffers_straight": 0,
        }
        assert [p.at.arc for p in certificate.points if p.at.fraction in (0, 0.5)] == pytest.approx(
            [0, 1.5 / 7, 3 / 7, 5 / 7, 1]
        )

    def test_only_parameters_have_length(self):
        line = [{**point(float(i)), "statistics": torch.tensor(100.0 * i)} for i in range(3)]
        certificate = certify(line, measured(lambda x: 0.0), threshold=0.1, parameter_names={"x"})
        assert certificate.lengths["arc"] == pytest.approx(2)
        assert certificate.lengths["buffers_arc"] == certificate.lengths["buffers_straight"] == pytest.approx(200)

    def test_waypoints_that_are_alike(self):
        certificate = certify([point(1.0)] * 3, measured(lambda x: 0.0), threshold=0.1)
        assert certificate.connected
        assert [p.at.arc for p in certificate.points] == sorted({p.at.arc for p in certificate.points})

    def test_interpolation(self):
        a = {"w": torch.tensor([1.0, 0.1]), "half": torch.tensor([1.0], dtype=torch.float16), "n": torch.tensor(3)}
        b = {"w": torch.tensor([2.0, 0.2]), "half": torch.tensor([3.0], dtype=torch.float16), "n": torch.tensor(8)}
        line = Polyline([lambda: a, lambda: b])
        assert line.state(Position(0, 0.0)) is a
        assert line.state(Position(1, 0.0)) is b
        between = line.state(Position(0, 0.375))
        assert between["w"].dtype == between["half"].dtype == torch.float64
        assert between["w"].tolist() == [1.375, 0.625 * a["w"][1].item() + 0.375 * b["w"][1].item()]
        assert between["half"].item() == 1.75
        assert between["n"].item() == 3

    def test_straight_line(self):
        line = [point(0.0, 0.0), point(1.0, 2.0), point(4.0, 0.0)]
        certificate = certify(
            line, measured(lambda x, y: x + y), measured(lambda x, y: x, accuracy=0.5), threshold=9, straight_points=5
        )
        assert [(p.fraction, p.train_loss, p.test_loss) for p in certificate.straight_line] == [
            (i / 4, float(i), float(i)) for i in range(5)
        ]
        assert certificate.connected
        assert certify(line, measured(lambda x, y: 0.0), threshold=9, straight_points=0).straight_line == []


def test_the_test_set_is_reported_and_does_not_count():
    def test(state):
        x = state["x"].item()
        return Evaluation(100 * x, None, 0.99 - 0.1 * x * (1 - x), 10, 0)

    certificate = certify(LINE, measured(lambda x: 0.01), test, threshold=0.1, interior=3)
    assert certificate.connected
    assert certificate.min_test_accuracy == pytest.approx(0.965)
    assert certificate.min_test_accuracy_at.fraction == 0.5
    assert certificate.max_test_loss == 100
    assert certificate.points_evaluated_on_test == 5


def test_progress_counts_up():
    calls = []
    certify(
        LINE,
        measured(lambda x: 0.05, error=0.001),
        threshold=0.1,
        full_train=measured(lambda x: 0.05),
        progress=lambda *call: calls.append(call),
    )
    done = [call[0] for call in calls]
    assert done == list(range(1, len(calls) + 1))
    assert all(total >= count for count, total, _ in calls)
    assert "highest loss 0.0500" in calls[-1][2]


def test_several_workers_give_the_same_certificate():
    module = build_model("mlp", hidden=16)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(300, 64, generator=generator), torch.randint(10, (300,), generator=generator)
    line = [
        {name: torch.randn(value.shape, generator=generator) for name, value in module.state_dict().items()}
        for _ in range(4)
    ]
    train = Evaluator(module, F.cross_entropy, inputs, targets)
    threads = torch.get_num_threads()
    before = torch.get_rng_state()
    certificates = [
        certify(line, train, train, threshold=0.1, workers=workers, seed=7).as_dict() for workers in (1, 3, 3)
    ]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before)
    for certificate in certificates:
        assert certificate.pop("environment")["workers"] in (1, 3)
    assert certificates[0] == certificates[1] == certificates[2]


def test_threads_that_start_later_are_as_before():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        certificate = certify(
            LINE, lambda state: Evaluation(torch.get_num_threads(), None, None, 1, 0), threshold=9, workers=2
        )
        assert {p.train_loss for p in certificate.points} == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


def test_errors_of_workers_surface():
    def fail(state):
        raise LLPFError("no such layer")

    with pytest.raises(LLPFError, match="no such layer"):
        certify(LINE, fail, threshold=0.1, workers=2)
