"""``certify``: verdicts, what they cover, and the points of the picture."""

from __future__ import annotations

import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model
from llpf_fast.path import RunDirectory
from llpf_fast.path.polyline import Polyline, Position
from llpf_fast.verify import Certificate, Coverage, Evaluator, Limits, certify
from llpf_fast.verify.enclosure.bisection import bisect

State = dict[str, Tensor]


class Landscape(nn.Module):
    """The mean squared output is ``floor``, and rises to ``height`` within ``width`` of ``centre``, as x moves.

    Args:
        opaque: compute it from Python's numbers, which no enclosure can follow.
    """

    def __init__(
        self,
        centre: float = 0.0,
        width: float = 1.0,
        height: float = 0.01,
        floor: float = 0.01,
        *,
        opaque: bool = False,
    ) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))
        self.centre, self.width, self.opaque = centre, width, opaque
        self.low, self.rise = math.sqrt(floor), math.sqrt(height) - math.sqrt(floor)

    def forward(self, inputs: Tensor) -> Tensor:
        x = torch.tensor([float(self.x)]) if self.opaque else self.x
        off = (x - self.centre) / self.width
        gate = F.relu(1 - F.relu(off) - F.relu(-off))
        return 0 * inputs + self.low + self.rise * gate


def judge(module: nn.Module, values: Any, *, threshold: float = 0.1, samples: int = 20, **options: Any) -> Certificate:
    """The certificate of the path of ``module`` through the values of its parameter x."""
    train = Evaluator(module, F.mse_loss, torch.ones(samples, 1), torch.zeros(samples, 1))
    states = [{**module.state_dict(), "x": torch.tensor([float(value)])} for value in values]
    return certify(states, train, threshold=threshold, **{"workers": 1, "straight_points": 0, **options})


both = pytest.mark.parametrize("opaque", [False, True], ids=["enclosed", "by points"])


class TestVerdicts:
    @both
    @pytest.mark.parametrize("centre", [0.0, 0.13, 0.5, 1.0])
    def test_below_the_threshold(self, opaque: bool, centre: float) -> None:
        certificate = judge(Landscape(centre, 0.3, 0.09, opaque=opaque), [0, 1])
        assert certificate.verdict == ("sampled" if opaque else "proved"), certificate.undecided
        assert certificate.connected
        assert certificate.reasons == certificate.undecided == []
        assert certificate.witness is None
        assert certificate.bound is not None
        assert max(certificate.max_loss, 0.09 if not opaque else 0) <= certificate.bound <= 0.1

    @both
    @pytest.mark.parametrize("centre", [0.0, 0.13, 0.5, 1.0, 1.4])
    def test_above_it(self, opaque: bool, centre: float) -> None:
        module = Landscape(centre, 0.3, 0.5, opaque=opaque)
        certificate = judge(module, [0, 1, 2])
        assert (certificate.verdict, certificate.connected, certificate.bound) == ("refuted", False, None)
        witness = certificate.witness
        assert witness is not None
        x = witness.waypoint + witness.fraction
        assert witness.samples == 20
        assert witness.loss == pytest.approx(judge(module, [x, x], threshold=9).max_loss, rel=1e-5)
        assert 0.1 < witness.loss <= certificate.max_loss
        assert f"the training loss is {witness.loss:.4g} at waypoint {witness.waypoint}" in certificate.reasons[0]

    def test_a_spike_that_points_would_miss(self) -> None:
        """A ten-thousandth of the segment: proved below a threshold above it, refuted below it."""
        module = Landscape(0.377, 1e-4, 0.5)
        assert judge(module, [0, 1], threshold=0.51).verdict == "proved"
        assert judge(module, [0, 1], threshold=0.4).verdict == "refuted"

    @both
    def test_a_short_segment_is_looked_at_like_a_long_one(self, opaque: bool) -> None:
        """A detour does not thin out the points elsewhere."""
        module = Landscape(0.5, 0.4, 0.5, opaque=opaque)
        assert judge(module, [-4e5, 0, 1, 1e6]).verdict == "refuted"

    @both
    def test_at_the_threshold(self, opaque: bool) -> None:
        """Nothing moves: one point is evaluated."""
        module = Landscape(opaque=opaque)
        loss = judge(module, [5, 5]).max_loss
        assert judge(module, [5, 5], threshold=loss).connected
        assert judge(module, [5, 5], threshold=math.nextafter(loss, 0)).verdict == "refuted"

    @pytest.mark.parametrize("limits", [Limits(evaluations=40), Limits(finest=0.5)])
    def test_limits_leave_pieces_open(self, limits: Limits) -> None:
        certificate = judge(Landscape(0.377, 0.01, 0.0999), [0, 1], limits=limits)
        assert (certificate.verdict, certificate.connected, certificate.reasons) == ("undecided", False, [])
        assert "may exceed the threshold 0.1" in certificate.undecided[0]
        assert certificate.covers.startswith("Undecided: nothing is shown of the whole path")
        assert any(cause for *_, cause in certificate.pieces)

    def test_the_rule_gives_up_too(self) -> None:
        """The loss has a kink at every scale that the points see."""

        class Rough(Landscape):
            def forward(self, inputs: Tensor) -> Tensor:
                return 0 * inputs + 0.3 + 0.01 * (hash(float(self.x)) % 2)

        certificate = judge(Rough(), [0, 1], threshold=0.0962)
        assert (certificate.verdict, certificate.connected) == ("undecided", False)

    def test_other_reasons(self) -> None:
        certificate = judge(Landscape(), [0, 1], also_wrong=["it stops halfway"])
        assert (certificate.connected, certificate.verdict) == (False, "proved")
        assert certificate.reasons == ["it stops halfway"]

    @both
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_waypoint_that_is_not_finite(self, opaque: bool, value: float) -> None:
        certificate = judge(Landscape(opaque=opaque), [0, value, 2])
        assert not certificate.connected
        assert "the tensor x has values that are not finite and change between waypoints 0 and 1" in "".join(
            certificate.undecided
        )
        assert all(0 <= point.at.arc <= 1 for point in certificate.points)

    @both
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_one_sample_that_is_not_finite(self, opaque: bool, bad: float) -> None:
        module = Landscape(opaque=opaque)
        targets = torch.zeros(20, 1)
        targets[7] = bad
        train = Evaluator(module, F.mse_loss, torch.ones(20, 1), targets)
        certificate = certify([{"x": torch.zeros(1)}, {"x": torch.ones(1)}], train, threshold=0.1)
        assert certificate.verdict == "refuted"
        assert "not finite" in certificate.reasons[0]

    def test_one_waypoint(self) -> None:
        certificate = judge(Landscape(), [0])
        assert (certificate.points_evaluated, certificate.segments, certificate.lengths["arc"]) == (1, 0, 0.0)
        assert certificate.connected

    def test_the_witness_is_reproduced_by_its_four_lines(self, tmp_path: Any, capsys: Any, monkeypatch: Any) -> None:
        module = Landscape(0.3, 0.1, 0.5)
        run = RunDirectory.create(tmp_path / "run", {})
        for tick in (0, 1):
            run.add_waypoint(tick, {"x": torch.tensor([float(tick)])})
        train = Evaluator(module, F.mse_loss, torch.ones(20, 1), torch.zeros(20, 1))
        witness = certify(run.waypoints(), train, threshold=0.1).witness
        assert witness is not None
        assert len(witness.reproduce.splitlines()) == 4
        monkeypatch.chdir(run.folder)
        names = {"model": module, "inputs": torch.ones(20, 1), "targets": torch.zeros(20, 1), "loss_fn": F.mse_loss}
        exec(f"import safetensors.torch, torch\n{witness.reproduce}", names)
        assert f"{witness.loss:.4f}" in capsys.readouterr().out


class TestCovers:
    def test_proved(self) -> None:
        covers = judge(Landscape(), [0, 1], way="from here to there").covers
        assert covers.startswith(
            "Proved: the training loss mse_loss is at most 0.1 at every point of the polyline from "
        )
        assert "from here to there, on all 20 training samples" in covers

    def test_by_points(self) -> None:
        certificate = judge(Landscape(opaque=True), [0, 1])
        assert certificate.covers.startswith("Sampled:")
        assert "which is no proof" in certificate.covers
        assert certificate.evaluation["not_enclosed"] in certificate.covers

    def test_what_differs(self) -> None:
        covers = judge(Landscape(), [0, 1], differs=iter(["the data are others"])).covers
        assert covers.endswith("unlike the search: the data are others.")

    def test_chosen_samples(self) -> None:
        module = Landscape(0.5, 0.3, 0.05)
        certificate = judge(module, [0, 1], samples=4000, level="sampled")
        assert (certificate.verdict, certificate.level) == ("sampled", "sampled")
        assert "2,000 of 4,000 training samples (the 500 hardest, 1,500 at random)" in certificate.covers
        train = certificate.evaluation["train"]
        assert (train["samples"], train["screening_samples"], train["screened"]) == (4000, 2000, True)
        assert train["chosen"]["seed"] == certificate.resolution["seed"]
        few = judge(module, [0, 1], samples=1400, level="sampled")
        assert (few.verdict, few.level) == ("proved", "full")

    @both
    def test_a_peak_on_chosen_samples_is_confirmed_on_all(self, opaque: bool) -> None:
        certificate = judge(Landscape(0.4, 0.2, 0.5, opaque=opaque), [0, 1], samples=4000, level="sampled")
        assert certificate.verdict == "refuted"
        assert certificate.witness is not None
        assert certificate.witness.samples == 4000


class TestNetworks:
    def test_reestimated_statistics_have_no_enclosure(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        generator = torch.Generator().manual_seed(0)
        inputs, targets = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
        states = [net.state_dict(), {name: value + 0.01 for name, value in net.state_dict().items()}]
        states[1]["1.num_batches_tracked"] = torch.tensor(3)
        for statistics, verdict in (("stored", "proved"), ("reestimated", "sampled")):
            train = Evaluator(net, None, inputs, targets, statistics=statistics, statistics_inputs=inputs)
            certificate = certify(states, train, threshold=2.0)
            assert certificate.verdict == verdict, certificate.covers
        assert "BatchNorm statistics are re-estimated at each point" in certificate.covers

    def test_a_network_that_keeps_what_it_computed(self) -> None:
        """Every point would have the loss of the first."""

        class Keeps(Landscape):
            kept: Tensor | None = None

            def forward(self, inputs: Tensor) -> Tensor:
                if self.kept is None:
                    self.kept = super().forward(inputs[:1]).detach()
                return self.kept + 0 * inputs

        certificate = judge(Keeps(0.5, 0.4, 0.5, opaque=True), [0, 0.5, 1])
        assert not certificate.connected
        assert "depends on earlier calls" in "".join(certificate.reasons)

    def test_a_loss_that_mixes_samples(self) -> None:
        """It is judged on all samples in their order, and a note says so."""

        class Mixes(Landscape):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs) + (inputs - inputs.mean(0)) / (inputs.std(0) + 1)

        module = Mixes(height=0.05)
        inputs = torch.arange(3000.0)[:, None] ** 2 / 9e6
        train = Evaluator(module, F.mse_loss, inputs, torch.zeros(3000, 1), batch_size=100)
        states = [{"x": torch.zeros(1)}, {"x": torch.ones(1)}]
        certificate = certify(states, train, threshold=9.0, level="sampled", straight_points=0)
        assert (certificate.level, certificate.verdict) == ("full", "sampled")
        assert "which samples share a batch" in certificate.notes[0]

    @pytest.mark.parametrize(
        ("a", "b", "kind"), [(0, 1, "integers"), (False, True, "booleans"), ([1, 2], [1, 3], "integers")]
    )
    def test_no_line_leads_from_integer_to_integer(self, a: Any, b: Any, kind: str) -> None:
        class Masked(Landscape):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mask", torch.tensor(a))

        train = Evaluator(Masked(), F.mse_loss, torch.ones(5, 1), torch.zeros(5, 1))
        states = [{"x": torch.tensor([float(x)]), "mask": torch.tensor(m)} for x, m in enumerate((a, a, b, a))]
        certificate = certify(states, train, threshold=0.1)
        assert (certificate.connected, certificate.verdict, certificate.reasons) == (False, "undecided", [])
        assert certificate.undecided == [
            f"the {kind} of the tensor mask change between waypoints 1 and 2: no straight line leads from one to the "
            "other (and 1 more)"
        ]

    def test_infinities_that_stay_do_not_count(self) -> None:
        class Masked(Landscape):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mask", torch.tensor([0.0, -math.inf, math.nan]))

        train = Evaluator(Masked(), F.mse_loss, torch.ones(5, 1), torch.zeros(5, 1))
        states = [{"x": torch.tensor([float(x)]), "mask": Masked().state_dict()["mask"]} for x in range(3)]
        assert certify(states, train, threshold=0.1).connected
        states[2]["mask"] = torch.tensor([0.0, math.inf, math.nan])
        certificate = certify(states, train, threshold=0.1)
        assert not certificate.connected
        assert "tensor mask" in certificate.undecided[0]

    def test_a_complex_parameter(self) -> None:
        class Complex(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.zeros(1, dtype=torch.complex64))

            def forward(self, inputs: Tensor) -> Tensor:
                return inputs * self.w.imag

        train = Evaluator(Complex(), F.l1_loss, torch.ones(5, 1), torch.zeros(5, 1))
        states = [{"w": torch.tensor([value], dtype=torch.complex64)} for value in (0j, 3 + 4j, 3 + 4j)]
        certificate = certify(states, train, threshold=4.5)
        assert certificate.connected, certificate.undecided
        assert certificate.lengths["arc"] == certificate.lengths["straight"] == 5


class TestGeometry:
    def test_only_parameters_have_length(self) -> None:
        class Buffered(Landscape):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("statistics", torch.zeros(()))

        train = Evaluator(Buffered(), F.mse_loss, torch.ones(5, 1), torch.zeros(5, 1))
        states = [{"x": torch.tensor([float(x)]), "statistics": torch.tensor(100.0 * x)} for x in (0, 3, 1)]
        certificate = certify(states, train, threshold=0.1, parameter_names={"x"})
        assert certificate.lengths == {"arc": 5, "straight": 1, "buffers_arc": 500, "buffers_straight": 100}
        assert [p.at.arc for p in certificate.points if p.at.fraction == 0] == pytest.approx([0, 0.6, 1])
        moving = [{**states[0], "statistics": torch.tensor(float(x))} for x in (0, 1, 3)]
        certificate = certify(moving, train, threshold=0.1, parameter_names={"x"})
        assert [p.at.arc for p in certificate.points if p.at.fraction == 0] == pytest.approx([0, 1 / 3, 1])

    def test_interpolation(self) -> None:
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

    def test_straight_line(self) -> None:
        certificate = judge(Landscape(2.0, 2.0, 0.09), [0, 1, 4], threshold=9, straight_points=5)
        assert [point.fraction for point in certificate.straight_line] == [i / 4 for i in range(5)]
        assert [point.train_loss for point in certificate.straight_line] == pytest.approx(
            [0.01, 0.04, 0.09, 0.04, 0.01]
        )

    def test_the_test_set_is_reported_and_does_not_count(self) -> None:
        module = Landscape()
        train = Evaluator(module, F.mse_loss, torch.ones(20, 1), torch.zeros(20, 1))
        test = Evaluator(module, F.mse_loss, torch.ones(20, 1), torch.full((20, 1), 10.0))
        states = [{"x": torch.tensor([float(x)])} for x in range(3)]
        certificate = certify(states, train, test, threshold=0.1)
        assert certificate.connected
        assert certificate.max_test_loss == pytest.approx(98.01)
        assert certificate.points_evaluated_on_test >= 3


def digits_like() -> tuple[nn.Module, Evaluator, list[State]]:
    module = build_model("mlp", hidden=16)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(300, 64, generator=generator), torch.randint(10, (300,), generator=generator)
    first = {name: torch.randn(value.shape, generator=generator) / 8 for name, value in module.state_dict().items()}
    line = [first]
    for _ in range(3):
        line.append({name: value + torch.randn(value.shape, generator=generator) / 50 for name, value in first.items()})
    return module, Evaluator(module, F.cross_entropy, inputs, targets), line


class TestWork:
    def test_progress_counts_up(self) -> None:
        calls: list[tuple[int, int, str]] = []
        judge(Landscape(), [0, 1], progress=lambda *call: calls.append(call), straight_points=3)
        done = [call[0] for call in calls]
        assert done == sorted(done)
        assert all(count <= total for count, total, _ in calls)

    def test_several_workers_give_the_same_certificate(self) -> None:
        _, train, line = digits_like()
        threads, before = torch.get_num_threads(), torch.get_rng_state()
        certificates = [
            certify(line, train, train, threshold=2.7, workers=workers, seed=7).as_dict() for workers in (1, 3, 3)
        ]
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), before)
        for certificate in certificates:
            assert certificate.pop("environment")["workers"] in (1, 3)
            certificate["resolution"].pop("seconds")
        assert certificates[0] == certificates[1] == certificates[2]

    def test_threads_that_start_later_are_as_before(self) -> None:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            judge(Landscape(), [0, 1], workers=2)
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 3
        finally:
            torch.set_num_threads(threads)

    def test_a_new_seed_each_time_and_it_is_recorded(self) -> None:
        module = Landscape(0.5, 0.3, 0.05, opaque=True)
        first, second = judge(module, [0, 1]), judge(module, [0, 1])
        assert first.resolution["seed"] != second.resolution["seed"]
        assert [p.at for p in first.points] != [p.at for p in second.points]
        again = judge(module, [0, 1], seed=first.resolution["seed"])
        assert [p.at for p in again.points] == [p.at for p in first.points]

    def test_every_place_may_be_evaluated(self) -> None:
        """A path cannot be high where no seed evaluates it."""
        module = Landscape(opaque=True)
        fractions = [p.at.fraction for seed in range(150) for p in judge(module, [0, 1], seed=seed).points]
        assert {int(f * 16) for f in fractions} == set(range(16))

    def test_errors_of_workers_surface(self) -> None:
        module = Landscape(opaque=True)
        train = Evaluator(module, F.mse_loss, torch.ones(5, 1), torch.zeros(5, 1))
        states: list[Any] = [{"x": torch.zeros(1)}, {"x": torch.ones(1)}, {"x": torch.ones(2)}]
        with pytest.raises(LLPFError, match=r"the tensor x has shape \[1\] in waypoint 1 and \[2\] in waypoint 2"):
            certify(states, train, threshold=0.1, workers=2)

    def test_all_arguments_are_documented(self) -> None:
        for name in inspect.signature(certify).parameters:
            assert name in str(certify.__doc__)


@pytest.mark.parametrize("change", ["drop", "shorten", "repeat"])
def test_pieces_that_leave_something_out_prove_nothing(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the code that closes pieces."""

    def broken(*args: Any, **options: Any) -> Coverage:
        found = bisect(*args, **options)
        first, *rest = found.closed
        closed = {
            "drop": rest,
            "shorten": [replace(first, end=0.99 * first.end), *rest],
            "repeat": [first, *found.closed],
        }
        return replace(found, closed=closed[change])

    monkeypatch.setattr("llpf_fast.verify.verification.bisect", broken)
    certificate = judge(Landscape(), [0, 1, 2])
    assert (certificate.verdict, certificate.connected, certificate.bound) == ("undecided", False, None)
    assert "no piece covers the segment after waypoint 0" in certificate.undecided[0]
