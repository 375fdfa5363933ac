"""The loss of a set and its derivatives are those of one call on all of it, in every analysis, however it is cut."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from llpf_fast.analysis import Problem
from llpf_fast.analysis.curve_methods import _screening_loss
from llpf_fast.analysis.directional_loss import DirectionalLoss
from llpf_fast.analysis.hessian import Hessian
from llpf_fast.analysis.linear import linear_connectivity
from llpf_fast.analysis.plane import loss_on_plane
from llpf_fast.batches import FixedSamples, LossReduction, TensorData
from llpf_fast.batches.fixed_samples import MaterializedData

_COUNT, _CLASSES = 23, 4
_WEIGHTS = torch.tensor([0.3, 2.0, 7.0, 0.0])


class Dense(nn.Module):
    """Images ``[B, 2, H, W]`` to class scores ``[B, 4, H, W]``, smoothly."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, _CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Two(nn.Module):
    """Two inputs, by name or by position."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 6), nn.Linear(3, 6)
        self.head = nn.Linear(6, _CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(a) * self.right(b)))


def _flat() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, _CLASSES))


def _inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(_COUNT, 5, generator=generator)


def _labels(generator: torch.Generator, *shape: int, ignored: int | None = None) -> Tensor:
    labels = torch.randint(_CLASSES, (_COUNT, *shape), generator=generator)
    if ignored is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.6] = ignored
        labels[:7] = ignored  # whole batches without a label
    return labels


@dataclass(frozen=True)
class Case:
    net: Callable[[], nn.Module]
    loss: Any
    data: Callable[[torch.Generator], tuple[Any, Tensor]]


CASES = {
    "class weights": Case(_flat, nn.CrossEntropyLoss(weight=_WEIGHTS), lambda g: (_inputs(g), _labels(g))),
    "ignored labels": Case(_flat, F.cross_entropy, lambda g: (_inputs(g), _labels(g, ignored=-100))),
    "smoothed, weighted, ignored": Case(
        _flat,
        nn.CrossEntropyLoss(weight=_WEIGHTS + 0.5, label_smoothing=0.2, ignore_index=2),
        lambda g: (_inputs(g), _labels(g, ignored=2)),
    ),
    "partial of nll": Case(
        lambda: nn.Sequential(_flat(), nn.LogSoftmax(1)),
        functools.partial(F.nll_loss, weight=_WEIGHTS),
        lambda g: (_inputs(g), _labels(g)),
    ),
    "positive weights": Case(
        _flat, nn.BCEWithLogitsLoss(pos_weight=_WEIGHTS), lambda g: (_inputs(g), (_labels(g, _CLASSES) > 1).float())
    ),
    "squares": Case(_flat, F.mse_loss, lambda g: (_inputs(g), torch.randn(_COUNT, _CLASSES, generator=g))),
    "sum of squares": Case(
        _flat, nn.MSELoss(reduction="sum"), lambda g: (_inputs(g), torch.randn(_COUNT, _CLASSES, generator=g))
    ),
    "dense": Case(
        Dense,
        nn.CrossEntropyLoss(weight=_WEIGHTS, ignore_index=-1),
        lambda g: (torch.randn(_COUNT, 2, 3, 4, generator=g), _labels(g, 3, 4, ignored=-1)),
    ),
    "two inputs by name": Case(
        Two,
        nn.CrossEntropyLoss(weight=_WEIGHTS),
        lambda g: ({"a": _inputs(g), "b": torch.randn(_COUNT, 3, generator=g)}, _labels(g)),
    ),
    "two inputs by position": Case(
        Two,
        nn.CrossEntropyLoss(weight=_WEIGHTS),
        lambda g: ((_inputs(g), torch.randn(_COUNT, 3, generator=g)), _labels(g)),
    ),
}
#: How the same samples are cut: (batch size, order, whether they come in batches of other sizes).
CUTS = {"in fives": 5, "in ones": 1, "in sevens, shuffled": 7, "all at once": _COUNT, "as a list of batches": None}


class Whole:
    """One network, and the loss of the whole set in one call of plain torch, float64."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.case = CASES[name]
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.nets = [self.case.net().double() for _ in range(3)]
        for net in self.nets:
            for parameter in net.parameters():
                parameter.data *= 2.0
        self.data = self.case.data(self.generator)
        self.names = [name for name, _ in self.nets[0].named_parameters()]
        self.shapes = [parameter.shape for parameter in self.nets[0].parameters()]
        self.size = sum(shape.numel() for shape in self.shapes)

    def vector(self, net: int = 0) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.nets[net].parameters()])

    def loss(self, vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in self.shapes])
        point = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        inputs, targets = self.data
        double = lambda value: value.double() if value.is_floating_point() else value
        if isinstance(inputs, dict):
            output = functional_call(self.nets[0], point, (), {key: double(value) for key, value in inputs.items()})
        else:
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            output = functional_call(self.nets[0], point, tuple(map(double, given)))
        loss = self.case.loss
        if isinstance(loss, functools.partial):
            loss = functools.partial(loss.func, weight=loss.keywords["weight"].double())
        elif isinstance(loss, nn.Module):
            loss = type(loss)(**{key: double(v) if isinstance(v, Tensor) else v for key, v in _options(loss).items()})
        return loss(output, double(targets))

    def held(self, cut: str) -> MaterializedData:
        data = TensorData(*self.data)
        if "shuffled" in cut:
            data = data.subset(torch.randperm(_COUNT, generator=torch.Generator().manual_seed(1)))
        if CUTS[cut] is not None:
            return data
        index = torch.arange(_COUNT)
        return [data.take(part) for part in index.split([3, 4, 1, 9, 6])]

    def problem(self, cut: str) -> Problem:
        return Problem(self.case.net().double(), self.case.loss, train=self.held(cut), batch_size=CUTS[cut])


def _options(loss: nn.Module) -> dict[str, Any]:
    names = ("weight", "pos_weight", "ignore_index", "label_smoothing", "reduction")
    return {name: getattr(loss, name) for name in names if hasattr(loss, name) and getattr(loss, name) is not None}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hessian_are_those_of_one_call(name: str, cut: str) -> None:
    whole = Whole(name)
    problem = whole.problem(cut)
    network, vector = problem.vector_loss(), whole.vector()
    assert network.dtype == torch.float64
    samples = problem.fixed(problem.measured)
    hessian = Hessian(network, vector, samples)
    direction = torch.randn(whole.size, generator=whole.generator, dtype=torch.float64)
    wanted = float(whole.loss(vector))
    assert wanted > 0.1
    (slope,) = torch.autograd.functional.jacobian(whole.loss, (vector,))
    _, product = torch.autograd.functional.hvp(whole.loss, vector, direction)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    assert hessian.loss() == pytest.approx(wanted, rel=1e-9)
    assert problem.evaluator()(whole.nets[0].state_dict()).loss == pytest.approx(wanted, rel=1e-9)
    close(hessian.gradient(), slope)
    close(hessian @ direction, product)
    # The curves' look at a fixed set; it is train mode, which changes nothing in these networks.
    assert _screening_loss(problem, network)(vector) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("cut", ["in fives", "as a list of batches"])
@pytest.mark.parametrize("name", CASES)
def test_the_restricted_loss_is_that_of_one_call(name: str, cut: str) -> None:
    whole = Whole(name, seed=3)
    problem = whole.problem(cut)
    directional = DirectionalLoss(problem, batch_size=5)
    assert directional.samples == _COUNT
    vector = whole.vector()
    moves = torch.randn(2, whole.size, generator=whole.generator, dtype=torch.float64)
    layout = problem.networks([net.state_dict() for net in whole.nets])
    directions = [{key: layout.unflatten(move)[key] for key in whole.names} for move in moves]
    expansion = directional.expand(whole.nets[0].state_dict(), directions)
    s = torch.zeros(2, dtype=torch.float64)
    along = lambda s: whole.loss(vector + s @ moves)
    assert directional.loss(whole.nets[0].state_dict()) == pytest.approx(float(whole.loss(vector)), rel=1e-9)
    assert expansion.loss == pytest.approx(float(whole.loss(vector)), rel=1e-9)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(expansion.slopes, torch.autograd.functional.jacobian(along, s))
    close(expansion.curvature, torch.autograd.functional.hessian(along, s))


@pytest.mark.parametrize("name", ["class weights", "smoothed, weighted, ignored", "dense", "positive weights"])
def test_lines_and_planes_are_measured_so_too(name: str) -> None:
    whole = Whole(name)
    for cut in ("in sevens, shuffled", "as a list of batches"):
        problem = whole.problem(cut)
        networks = problem.networks(whole.nets)
        line = linear_connectivity(problem, networks, points=3, pairs=[(0, 1)]).lines[0]
        for fraction, value in zip(line.fractions, line.values["train_loss"], strict=True):
            wanted = float(whole.loss(whole.vector(0).lerp(whole.vector(1), fraction)))
            assert value == pytest.approx(wanted, rel=1e-9)
        plane = loss_on_plane(problem.evaluator(), networks, resolution=2)
        a, b, c = (whole.vector(i) for i in range(3))
        x, y = float(plane.x[1]), float(plane.y[1])
        beside = y / plane.corners[2, 1]
        ahead = (x - beside * plane.corners[2, 0]) / plane.corners[1, 0]
        wanted = float(whole.loss(a + ahead * (b - a) + beside * (c - a)))
        assert plane.loss[1, 1] == pytest.approx(wanted, rel=1e-9)


def test_a_batch_without_a_label_has_no_part_and_a_set_without_one_is_refused() -> None:
    whole = Whole("ignored labels")
    network = whole.problem("in fives").vector_loss()
    with pytest.raises(ValueError, match="no sample has a label"):
        Hessian(network, whole.vector(), [(torch.zeros(2, 5), torch.full((2,), -100))])
    inputs, targets = whole.data
    few = Hessian(network, whole.vector(), [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])])
    assert few.loss() == pytest.approx(float(whole.loss(whole.vector())), rel=1e-9)


def test_the_mean_of_another_loss_weighs_batches_by_their_samples() -> None:
    def root(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean().sqrt()

    net = nn.Linear(3, 1).double()
    inputs, targets = torch.randn(7, 3).double(), torch.randn(7, 1).double()
    problem = Problem(net, root, train=[(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])
    hessian = Hessian(
        problem.vector_loss(), problem.networks([net], fewest=1).vectors()[0], problem.fixed(problem.measured)
    )
    with torch.no_grad():
        parts = [root(net(inputs[:5]), targets[:5]), root(net(inputs[5:]), targets[5:])]
    assert hessian.loss() == pytest.approx(float(5 * parts[0] + 2 * parts[1]) / 7, rel=1e-12)
    assert problem.evaluator()(net.state_dict()).loss == pytest.approx(hessian.loss(), rel=1e-12)


def test_a_float32_network_is_differentiated_in_float64_with_its_class_weights() -> None:
    whole = Whole("class weights")
    problem = Problem(_flat(), whole.case.loss, train=whole.data)
    assert problem.dtype == torch.float32
    state = {name: value.float() for name, value in whole.nets[0].state_dict().items()}
    loss = DirectionalLoss(problem).loss(state)
    vector = torch.cat([value.double().flatten() for value in state.values()])
    assert loss == pytest.approx(float(whole.loss(vector)), rel=1e-12)
    assert problem.evaluator(dtype=torch.float64)(state).loss == pytest.approx(loss, rel=1e-12)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation=F.gelu)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.block(x)).unflatten(-1, (3, 2, 4)).movedim(1, -2).unbind(-4)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(-2).flatten(1))


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    net = Attention().double().eval()
    inputs, targets = torch.randn(9, 5, 8), torch.randint(3, (9,))
    problem = Problem(net, train=(inputs, targets))
    network, vector = problem.vector_loss(), problem.networks([net], fewest=1).vectors()[0]
    hessian = Hessian(network, vector, problem.fixed(problem.measured, batch_size=4))
    direction = torch.randn(len(vector), dtype=torch.float64)
    product = hessian @ direction
    # By finite differences of gradients, which the fused kernels do have.
    step = 1e-5 * direction
    there, back = (Hessian(network, vector + s, problem.fixed(problem.measured)).gradient() for s in (step, -step))
    torch.testing.assert_close(product, (there - back) / 2e-5, rtol=1e-5, atol=1e-8)
    move = problem.networks([net], fewest=1).unflatten(direction)
    expansion = DirectionalLoss(problem, batch_size=4).expand(net.state_dict(), [move])
    assert float(expansion.curvature[0, 0]) == pytest.approx(float(direction @ product), rel=1e-9)


def test_shares_are_those_of_the_evaluator() -> None:
    whole = Whole("dense")
    samples = whole.problem("in fives").fixed(TensorData(*whole.data))
    assert isinstance(samples, FixedSamples)
    assert sum(samples.shares(LossReduction(whole.case.loss))) == pytest.approx(1)
