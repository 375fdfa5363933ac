"""``Problem`` and ``Networks`` take what a search takes: forms of data, losses, wrappers, buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from llpf_fast import LLPFError
from llpf_fast.analysis import Networks, Problem
from llpf_fast.analysis.connector import ConnectorSettings, find_connector
from llpf_fast.analysis.curve import CurveResult, write_run
from llpf_fast.analysis.curve_methods import Budget, find_curve
from llpf_fast.analysis.ensemble import ensemble_along
from llpf_fast.analysis.linear import linear_connectivity
from llpf_fast.analysis.sharpness import sharpness_along
from llpf_fast.analysis.vector_loss import VectorLoss
from llpf_fast.batches import TensorData
from llpf_fast.path import RunDirectory
from llpf_fast.verify import verify_run

from . import blobs
from .toy_networks import Tanh, random_classes


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Tanh()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.net(x + shift)


def _loss(problem: Problem, state: dict[str, Tensor]) -> float:
    return problem.evaluator()(state).loss


def test_every_form_of_the_same_data_measures_the_same() -> None:
    inputs, targets = random_classes(40)
    arrays = (inputs.numpy().astype(np.float64), targets.numpy().astype(np.int32))
    forms = {
        "tensors": (inputs, targets),
        "arrays": arrays,
        "dataset": TensorDataset(inputs, targets),
        "loader": DataLoader(TensorDataset(inputs, targets), batch_size=7),
        "list": [(inputs[:9], targets[:9]), (inputs[9:], targets[9:])],
    }
    weights = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0]))
    net = Tanh(1)
    with torch.no_grad():
        wanted = float(weights(net(inputs), targets))
    for data in forms.values():
        problem = Problem(Tanh(), weights, train=data, test=data)
        assert _loss(problem, net.state_dict()) == pytest.approx(wanted, rel=1e-6)
        assert problem.evaluator("test")(net.state_dict()).loss == pytest.approx(wanted, rel=1e-6)
        assert problem.about()["training_samples"] == 40
    batched = Problem(Tanh(), train=forms["loader"], samples=20)
    assert [len(batch[1]) for batch in batched.train] == [7, 7, 7, 7, 7, 5]
    assert 10 < batched.about()["training_samples_measured"] < 30
    mapping = {"x": inputs, "shift": torch.ones(40, 6), "labels": targets}
    named = Named()
    problem = Problem(named, train=mapping)
    with torch.no_grad():
        wanted = float(F.cross_entropy(named(inputs, torch.ones(40, 6)), targets))
    assert _loss(problem, named.state_dict()) == pytest.approx(wanted, rel=1e-6)


def test_cross_entropy_is_chosen_for_classification_alone() -> None:
    assert Problem(Tanh(), train=random_classes()).loss_fn is F.cross_entropy
    with pytest.raises(LLPFError, match="no loss is given"):
        Problem(nn.Linear(6, 1), train=(torch.zeros(4, 6), torch.zeros(4, 1)))


def test_what_has_length_0_is_not_taken_for_missing() -> None:
    class Terms(nn.ModuleList):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 100 * F.cross_entropy(output, target)

    net, terms = Tanh(), Terms()
    problem = Problem(net, terms, train=random_classes())
    assert problem.loss_fn is terms
    plain = Problem(net, train=random_classes())
    assert _loss(problem, net.state_dict()) == pytest.approx(100 * _loss(plain, net.state_dict()), rel=1e-6)


def test_wrappers_are_taken_off() -> None:
    net = Tanh(1)
    compiled = torch.compile(net)
    problem = Problem(compiled, train=random_classes())
    assert problem.module is net
    prefixed = {f"module.{name}": value for name, value in net.state_dict().items()}
    networks = problem.networks([compiled, nn.DataParallel(Tanh(2)), prefixed])
    assert networks.parameter_names == [name for name, _ in net.named_parameters()]
    assert torch.equal(networks.vectors()[0], networks.vectors()[2])
    assert VectorLoss(compiled, F.cross_entropy).size == networks.size


def test_float64_networks_stay_so_everywhere() -> None:
    net = Tanh(1).double()
    inputs, targets = random_classes(30)
    problem = Problem(net, train=(inputs, targets))
    with torch.no_grad():
        wanted = float(F.cross_entropy(net(inputs.double()), targets))
    assert _loss(problem, net.state_dict()) == pytest.approx(wanted, rel=1e-14)
    network = problem.vector_loss()
    vector = network.pack(net.state_dict())
    assert vector.dtype == torch.float64
    assert float(network.loss(vector, inputs.double(), targets)) == pytest.approx(wanted, rel=1e-14)
    curve = find_curve("bezier", problem, net.state_dict(), Tanh(2).double().state_dict(), Budget(3, 0.1))
    assert {value.dtype for state in curve.waypoints for value in state.values()} == {torch.float64}


class Masked(nn.Module):
    """Attention with a causal mask, complex phases and a counter, all in the state dict."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.register_buffer("phase", torch.polar(torch.ones(3), torch.tensor([0.3, 1.1, 2.0])))
        self.register_buffer("order", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.irfft(torch.fft.rfft(x[:, self.order]) * self.phase, n=4)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(((q @ k.mT + self.mask).softmax(-1) @ v).mean(1))


def test_masks_phases_and_counters_stay_bit_for_bit() -> None:
    nets = [Masked(seed) for seed in range(3)]
    networks = Networks([net.state_dict() for net in nets], module=nets[0])
    own = nets[0].state_dict()
    for state in (
        networks.combine([0.2, 0.3, 0.5]),
        networks.combine([1.5, -0.5, 0.0]),
        Networks([dict(net.state_dict()) for net in nets]).combine([0.2, 0.3, 0.5]),
    ):
        for name in ("mask", "phase", "order"):
            assert torch.equal(state[name].to(own[name].dtype), own[name])


def test_a_line_keeps_them_too() -> None:
    nets = [Masked(seed) for seed in range(2)]
    inputs = torch.randn(20, 6, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 3
    problem = Problem(Masked(), train=(inputs, targets))
    networks = problem.networks(nets)
    state = nets[0].state_dict()
    between = networks.between(0, 1, 0.3)
    for name in ("mask", "phase", "order"):
        assert torch.equal(between[name].to(state[name].dtype), state[name])
    line = linear_connectivity(problem, networks, points=3, pairs=[(0, 1)]).lines[0]
    middle = Masked()
    middle.load_state_dict(networks.between(0, 1, 0.5))
    with torch.no_grad():
        wanted = [float(F.cross_entropy(net(inputs), targets)) for net in (nets[0], middle, nets[1])]
    assert line.values["train_loss"] == pytest.approx(wanted, rel=1e-5)
    network = problem.vector_loss()
    network.load_buffers(state)
    assert float(network.loss(network.pack(state), inputs, targets)) == pytest.approx(wanted[0], rel=1e-6)


def test_buffers_that_no_line_can_join_are_named() -> None:
    one, other = Masked(1), Masked(2)
    other.order.copy_(torch.arange(6).flip(0))
    problem = Problem(Masked(), train=(torch.zeros(4, 6, 4), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(LLPFError, match=r"model 0 and model 1: buffer 'order' \(int64\) differs"):
        problem.networks([one, other])
    other = Masked(2)
    other.mask[0, 0] = -torch.inf
    with pytest.raises(LLPFError, match="'mask' has NaN or infinite values that differ"):
        problem.networks([one, other])
    other = Masked(2)
    other.qkv.weight.data[0, 0] = torch.inf
    with pytest.raises(LLPFError, match=r"'qkv\.weight' has 1 infinite"):
        problem.networks([one, other])


def test_phases_that_differ_are_interpolated_as_complex_numbers() -> None:
    one, other = Masked(1), Masked(2)
    other.phase.mul_(1j)
    networks = Networks([one.state_dict(), other.state_dict()], module=one)
    wanted = 0.25 * one.phase + 0.75 * other.phase
    for state in (networks.combine([0.25, 0.75]), networks.between(0, 1, 0.75)):
        torch.testing.assert_close(state["phase"].to(torch.complex64), wanted)


def test_the_identity_changes_with_everything_that_changes_a_value() -> None:
    inputs, targets = random_classes(40)
    weight = torch.tensor([1.0, 2.0, 3.0])
    frozen = Tanh()
    frozen.head.requires_grad_(False)
    given = {
        "plain": Problem(Tanh(), train=(inputs, targets)),
        "weights": Problem(Tanh(), nn.CrossEntropyLoss(weight=weight), train=(inputs, targets)),
        "other weights": Problem(Tanh(), nn.CrossEntropyLoss(weight=weight * 2), train=(inputs, targets)),
        "ignored": Problem(Tanh(), nn.CrossEntropyLoss(ignore_index=1), train=(inputs, targets)),
        "smoothed": Problem(Tanh(), nn.CrossEntropyLoss(label_smoothing=0.1), train=(inputs, targets)),
        "float64": Problem(Tanh().double(), train=(inputs, targets)),
        "batch size": Problem(Tanh(), train=(inputs, targets), batch_size=7),
        "order": Problem(Tanh(), train=(inputs.flip(0), targets.flip(0))),
        "batches": Problem(Tanh(), train=[(inputs[:9], targets[:9]), (inputs[9:], targets[9:])]),
        "other batches": Problem(Tanh(), train=[(inputs[:8], targets[:8]), (inputs[8:], targets[8:])]),
        "statistics": Problem(Tanh(), train=(inputs, targets), usual_statistics="reestimated"),
        "part": Problem(Tanh(), train=(inputs, targets), samples=20),
        "frozen": Problem(frozen, train=(inputs, targets)),
    }
    identities = [str([problem.identity(), problem.training_identity()]) for problem in given.values()]
    assert len({*identities}) == len(identities)
    again = Problem(Tanh(3), train=(inputs.clone(), targets.clone()))
    assert again.training_identity() == given["plain"].training_identity()


def test_another_problem_keeps_loss_data_and_batches() -> None:
    inputs, targets = random_classes(40)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    problem = Problem(Tanh(), weighted, train=(inputs, targets), samples=20, batch_size=6)
    whole, wide = problem.like(samples=0), problem.like(module=Tanh(hidden=20))
    assert isinstance(whole.measured, TensorData)
    assert isinstance(wide.measured, TensorData)
    assert (whole.measured.count, wide.measured.count) == (40, 20)
    assert wide.measured.sha256 == problem.measured.sha256
    assert wide.loss_fn is whole.loss_fn is weighted
    assert wide.batch_size == whole.batch_size == 6


def test_a_run_says_how_its_points_are_measured(tmp_path) -> None:
    first, last = blobs.networks(norm=True)
    folder = blobs.write_path(tmp_path / "run", [first, last], statistics="reestimated")
    problem = Problem.from_run(folder, model=blobs.module(norm=True), train=blobs.data(), test=blobs.data(90))
    assert problem.usual_statistics == "reestimated"
    assert problem.evaluator()(first).statistics == "reestimated"
    row = sharpness_along(problem, folder, points=2, probes=2).rows[0]
    assert row["train_loss"] == pytest.approx(problem.evaluator()(first).loss, rel=1e-5)
    assert row["test_loss"] == problem.evaluator("test")(first).loss
    run = RunDirectory.create(tmp_path / "other", {"settings": {}, "task": {"evaluation_batch_size": 9}})
    run.add_waypoint(0, first)
    problem = Problem.from_run(run.folder, model=blobs.module(norm=True), train=blobs.data())
    assert (problem.batch_size, problem.usual_statistics) == (9, "stored")


def test_members_of_an_ensemble_are_judged_as_the_evaluator_judges_them(tmp_path) -> None:
    folder = blobs.write_path(tmp_path / "run", list(blobs.networks()))
    inputs, targets = blobs.data(90)
    targets = targets.clone()
    targets[::3] = 1
    targets[40:60] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 0.5]), label_smoothing=0.1)
    for test in ((inputs, targets), [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])]):
        problem = Problem(blobs.module(), loss, train=blobs.data(), test=test, batch_size=11)
        ensemble = ensemble_along(problem, folder, points=2)
        evaluate = problem.evaluator("test")
        for row, state in zip(ensemble.members, blobs.networks(), strict=True):
            evaluation = evaluate(state)
            assert row["test_loss"] == pytest.approx(evaluation.loss, rel=1e-6)
            assert row["test_accuracy"] == pytest.approx(evaluation.accuracy)
        both = [torch.softmax(_output(state, inputs).double(), 1) for state in blobs.networks()]
        wanted = nn.CrossEntropyLoss(weight=loss.weight.double(), label_smoothing=0.1)((sum(both) / 2).log(), targets)
        assert ensemble.rows[3]["test_loss"] == pytest.approx(float(wanted), rel=1e-6)


def _output(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    net = blobs.module()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(inputs)


@pytest.mark.parametrize("batched", [False, True])
def test_curves_and_connectors_train_where_batches_lack_labels(batched: bool) -> None:
    inputs, targets = blobs.data(60)
    targets = targets.clone()
    targets[10:] = -100
    data = [(x, y) for x, y in zip(inputs.split(5), targets.split(5), strict=True)] if batched else (inputs, targets)
    problem = Problem(blobs.module(), train=data)
    networks = blobs.networks()
    for method in ("bezier", "autoneb"):
        curve = find_curve(method, problem, networks[0], networks[1], Budget(20, 0.01, batch_size=2))
        assert all(bool(value.isfinite().all()) for state in curve.waypoints for value in state.values())
    settings = ConnectorSettings(kind="star", steps=20, window=10, batch_size=2, surface_steps=5)
    connector = find_connector(problem.copy(), networks, problem.loss_fn, problem.train, settings)
    assert all(bool(value.isfinite().all()) for state in connector.vertices for value in state.values())


def test_a_connector_of_a_sum_is_refused() -> None:
    with pytest.raises(LLPFError, match="adds up over a batch"):
        find_connector(blobs.module(), blobs.networks(), nn.CrossEntropyLoss(reduction="sum"), blobs.data())


def test_a_curves_run_says_with_which_loss_it_is_judged(tmp_path) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    problem = Problem(blobs.module(norm=True), loss, train=blobs.data(), batch_size=50)
    states = list(blobs.networks(norm=True))
    write_run(CurveResult("linear", states, 0, 0.0), tmp_path / "run", problem, threshold=9.0, about={})
    with pytest.raises(LLPFError, match="used the loss cross_entropy"):
        verify_run(tmp_path / "run", model=blobs.module(norm=True), train=blobs.data())
    certificate = verify_run(tmp_path / "run", model=blobs.module(norm=True), loss_fn=loss, train=blobs.data())
    evaluation = problem.evaluator(statistics="reestimated")(states[0])
    assert certificate.start_loss == pytest.approx(evaluation.loss, rel=1e-9)


def test_standard_errors_of_accuracy_count_labels(tmp_path) -> None:
    inputs, targets = blobs.data(90)
    targets = targets.clone()
    targets[30:] = -100
    problem = Problem(blobs.module(), train=blobs.data(), test=(inputs, targets))
    folder = blobs.write_path(tmp_path / "run", list(blobs.networks()))
    for row in sharpness_along(problem, folder, points=2, probes=2).rows:
        share = row["test_accuracy"]
        assert row["test_accuracy_standard_error"] == pytest.approx((share * (1 - share) / 30) ** 0.5)
