"""The evaluator on losses other than cross-entropy and targets that are no classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llpf_fast.verify import Evaluator, certify


def sequence_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Characters(nn.Module):
    """Whole numbers ``[B, T]`` -> logits ``[B, T, 5]``."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, text):
        return self.head(self.table(text).cumsum(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_sequence_model_on_whole_numbers():
    model = Characters()
    text = torch.randint(5, (70, 6))
    inputs, targets = text[:, :-1], text[:, 1:]
    evaluation = Evaluator(model, sequence_loss, inputs, targets, batch_size=30)(model.state_dict())
    expected = float(sequence_loss(model(inputs), targets).detach())
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)
    assert evaluation.samples == 70
    assert evaluation.accuracy is None
    assert evaluation.standard_error > 0, "from the means of batches"
    builtin = Evaluator(model, lambda output, target: F.cross_entropy(output.transpose(1, 2), target), inputs, targets)
    assert builtin(model.state_dict()).loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, nn.HuberLoss()])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_regression(loss_fn, outputs):
    model, inputs = nn.Linear(2, outputs), torch.randn(40, 2)
    targets = torch.randn(40, outputs)
    evaluation = Evaluator(model, loss_fn, inputs, targets, batch_size=16)(model.state_dict())
    assert evaluation.loss == pytest.approx(float(loss_fn(model(inputs), targets).detach()), rel=1e-5)
    assert evaluation.accuracy is None
    each = torch.stack([loss_fn(model(x), y).detach() for x, y in zip(inputs, targets, strict=True)]).double()
    assert evaluation.standard_error == pytest.approx(float(each.std() / 40**0.5), rel=1e-4)


def test_counts_as_targets_of_one_output_are_no_classes():
    """argmax over one output is always 0: an "accuracy" would only count the zeros."""
    model, inputs, targets = nn.Linear(2, 1), torch.randn(40, 2), torch.randint(3, (40,))

    def loss_fn(output, target):
        return F.poisson_nll_loss(output.squeeze(1), target.float())

    assert Evaluator(model, loss_fn, inputs, targets)(model.state_dict()).accuracy is None


def test_a_certificate_of_a_regression():
    model, inputs = nn.Linear(2, 1), torch.randn(40, 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = {name: value + 1 for name, value in start.items()}
    targets = model(inputs).detach()
    measure = Evaluator(model, F.mse_loss, inputs, targets)
    certificate = certify([start, end], measure, measure, threshold=100.0)
    assert certificate.connected
    assert certificate.start_loss == pytest.approx(0, abs=1e-12)
    expected = float((inputs.sum(1) + 1).square().mean())
    assert certificate.max_loss == certificate.destination_loss == pytest.approx(expected, rel=1e-5)
    assert certificate.min_test_accuracy is None
    assert not certify([start, end], measure, None, threshold=certificate.max_loss * 0.99).connected
