"""The correction against a loop in torch alone: same batches, same updates, same stopping rule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.flat import FlatParameters


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def torch_loop(module, batches, *, threshold, window, max_steps, step) -> list[float]:
    losses: list[float] = []
    module.train()
    while True:
        x, y = batches.batch(len(losses))
        module.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        losses.append(float(loss.detach()))
        last = losses[-window:]
        loss.backward()
        step()
        done = len(losses) >= window and sum(last) / len(last) <= threshold
        if done or len(losses) >= max_steps:
            return losses


@pytest.mark.parametrize(
    "hyper",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}],
    ids=["plain", "momentum", "nesterov"],
)
def test_equals_torchs_sgd(data, hyper) -> None:
    reference = network()
    module = copy.deepcopy(reference)
    rule = {"threshold": 0.45, "window": 5, "max_steps": 300}
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, **hyper)
    losses = torch_loop(reference, TensorBatches(*data, 16, seed=4), step=optimizer.step, **rule)

    flat = FlatParameters(module)
    batches = TensorBatches(*data, 16, seed=4)
    correction = Correction(flat, nn.functional.cross_entropy, batches, lr=0.05, **hyper, **rule)
    result = correction.run(0)

    assert 5 < result.steps == len(losses) < 300
    assert result.met
    assert result.loss == pytest.approx(sum(losses[-5:]) / 5, rel=1e-4)
    for (name, value), other in zip(module.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=name)


def test_any_torch_optimiser(data) -> None:
    reference = network()
    module = copy.deepcopy(reference)
    rule = {"threshold": 0.3, "window": 3, "max_steps": 200}
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01)
    losses = torch_loop(reference, TensorBatches(*data, 16, seed=4), step=optimizer.step, **rule)
    flat = FlatParameters(module)
    correction = Correction(
        flat,
        nn.functional.cross_entropy,
        TensorBatches(*data, 16, seed=4),
        lr=0.0,
        optimizer=torch.optim.AdamW(module.parameters(), lr=0.01),
        **rule,
    )
    assert correction.run(0).steps == len(losses)
    for value, other in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, line_search_fn="strong_wolfe")


def test_an_optimiser_that_asks_for_a_closure(data) -> None:
    """The losses of torch alone; every gradient that it took counts as a step."""
    reference = network()
    module = copy.deepcopy(reference)
    optimizer, batches = lbfgs(reference.parameters()), TensorBatches(*data, 16, seed=4)
    losses: list[float] = []
    taken = 0
    reference.train()
    while len(losses) < 3 or sum(losses[-3:]) / 3 > 0.3:
        x, y = batches.batch(7 + len(losses))
        at_batch: list[float] = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(reference(x), y)  # noqa: B023
            loss.backward()
            at_batch.append(float(loss.detach()))  # noqa: B023
            return loss

        optimizer.step(closure)
        losses.append(at_batch[0])
        taken += len(at_batch)
    flat = FlatParameters(module)
    rule = {"threshold": 0.3, "window": 3, "max_steps": 1000, "lr": 0.0}
    batches = TensorBatches(*data, 16, seed=4)
    optimizer = lbfgs(module.parameters())
    correction = Correction(flat, nn.functional.cross_entropy, batches, optimizer=optimizer, **rule)
    result = correction.run(7)
    assert 3 < len(losses) < taken == result.steps == optimizer.state_dict()["state"][0]["func_evals"]
    assert result.met
    assert result.loss == pytest.approx(sum(losses[-3:]) / 3, rel=1e-4)
    for value, other in zip(module.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5)


def test_a_closures_gradients_are_what_max_steps_bounds(data) -> None:
    module = network()
    rule = {"threshold": 1e-9, "window": 2, "max_steps": 20, "lr": 0.0}
    batches = TensorBatches(*data, 16, seed=4)
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.01, max_iter=6, tolerance_grad=0, tolerance_change=0)
    correction = Correction(FlatParameters(module), nn.functional.cross_entropy, batches, optimizer=optimizer, **rule)
    result = correction.run(0)
    assert (result.steps, result.met) == (24, False), "four batches of six gradients"


def test_a_closure_that_is_never_called(data) -> None:
    class Idle(torch.optim.SGD):
        def step(self, closure):  # type: ignore[override]
            return None

    module = network()
    rule = {"threshold": 0.1, "window": 1, "max_steps": 2, "lr": 0.0}
    batches, optimizer = TensorBatches(*data, 16, seed=4), Idle(module.parameters())
    correction = Correction(FlatParameters(module), nn.functional.cross_entropy, batches, optimizer=optimizer, **rule)
    with pytest.raises(LLPFError, match=r"Idle\.step asks for a closure but never calls it"):
        correction.run(0)


def test_stops_at_max_steps_and_says_so(data) -> None:
    flat = FlatParameters(network())
    correction = Correction(
        flat,
        nn.functional.cross_entropy,
        TensorBatches(*data, 16, seed=0),
        threshold=1e-9,
        window=2,
        max_steps=7,
        lr=0.01,
    )
    result = correction.run(0)
    assert (result.steps, result.met) == (7, False)


def test_momentum_is_dropped_between_corrections_unless_kept(data) -> None:
    rule = {"threshold": 1e-9, "window": 1, "max_steps": 3, "lr": 0.05, "momentum": 0.9}
    results = []
    for keep in (False, True):
        flat = FlatParameters(network())
        batches = TensorBatches(*data, 16, seed=0)
        correction = Correction(flat, nn.functional.cross_entropy, batches, keep_momentum=keep, **rule)
        correction.run(0)
        correction.run(3)
        results.append(flat.data.clone())
    assert not torch.equal(results[0], results[1])


def test_frozen_parameters_do_not_train(data) -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    flat = FlatParameters(module)
    correction = Correction(
        flat,
        nn.functional.cross_entropy,
        TensorBatches(*data, 16, seed=0),
        threshold=1e-9,
        window=1,
        max_steps=5,
        lr=0.1,
        weight_decay=0.1,
    )
    correction.run(0)
    assert torch.equal(module[0].weight, before)


def test_a_loss_that_is_not_finite_is_an_error(data) -> None:
    flat = FlatParameters(network())
    flat.data.fill_(float("nan"))
    correction = Correction(
        flat,
        nn.functional.cross_entropy,
        TensorBatches(*data, 16, seed=0),
        threshold=0.1,
        window=1,
        max_steps=5,
        lr=0.1,
    )
    with pytest.raises(LLPFError, match=r"became nan in step 1.*smaller"):
        correction.run(0)
