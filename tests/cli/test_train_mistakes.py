"""llpf train with a network, data and loss of one's own: what cannot work is one line, and so is what it got."""

from __future__ import annotations

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.models import train_model
from llpf_fast.path import load_model_file

CODE = """
import torch
from torch import nn

class Norm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

def wide(): return nn.Linear(9, 3)
def few(): return nn.Linear(8, 2)
def good(): return nn.Linear(8, 3)
def one(): return nn.Linear(8, 1)
def fails(): raise RuntimeError("no weights found")
def leaves(): raise SystemExit(3)
def a_class(): return Norm
def lazy(): return nn.LazyLinear(3)
def frozen(): return nn.Linear(8, 3).requires_grad_(False)
def empty(): return nn.Flatten()
def double(): return nn.Linear(8, 3).double()

class Fussy(nn.Linear):
    def forward(self, x):
        if not self.training:
            raise RuntimeError("only in training")
        return super().forward(x)

def fussy(): return Fussy(8, 3)

def split(y, x=torch.randn(65, 8, generator=torch.Generator().manual_seed(0))):
    return x, y, x[:20], y[:20]

def classes(): return split(torch.arange(65) % 3)
def values(): return split(torch.arange(65.0)[:, None] / 65)

def no_tensor(output, target): return 3.0
def no_scalar(output, target): return (output - target).square()
def no_gradient(output, target): return (output - target).square().mean().detach()
def broken(output, target): return output.nothing
def doubled(output, target): return 2 * nn.functional.mse_loss(output, target)
"""


@pytest.fixture
def train(llpf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistakes.py").write_text(CODE)

    def run(model, data, *more):
        names = ["--model", f"mistakes.py:{model}", "--data", f"mistakes.py:{data}", "--out", "x.pt"]
        return llpf("train", *names, "--epochs", 2, "--quiet", *more)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Norm", "classes"), "the last batch of an epoch would hold 1 of 65 samples, and the model's forward fails"),
        (("Norm", "classes"), "choose another batch size than 64"),
        (("Norm", "classes", "--batch-size", 1), "more than 1 value per channel when training"),
        (
            ("wide", "classes"),
            "model mistakes.py:wide on data mistakes.py:classes: the model's forward fails on data of shape",
        ),
        (("few", "classes"), "the network has 2 outputs, but the targets name classes up to 2: give it at least 3"),
        (("fails", "classes"), "model 'mistakes.py:fails' cannot be built: RuntimeError: no weights found"),
        (("leaves", "classes"), "model 'mistakes.py:leaves' cannot be built: SystemExit: 3"),
        (("a_class", "classes"), "model 'mistakes.py:a_class' gave a class; call it, not a torch.nn.Module"),
        (("lazy", "classes"), "has a lazy parameter, 'weight': run a batch through it in its factory"),
        (("frozen", "classes"), "the network has no parameter that trains: are all frozen?"),
        (("empty", "classes"), "the network has no parameter that trains"),
        (("good", "values"), "no loss is given, and output of shape [64, 3] with targets of shape [64, 1] is no"),
        (("one", "values"), "--loss on the command line"),
        (("one", "values", "--loss", "mse_los"), "unknown loss 'mse_los'; did you mean 'mse_loss'"),
        (("one", "values", "--loss", "mistakes.py:no_tensor"), "must return a scalar tensor"),
        (("one", "values", "--loss", "mistakes.py:no_scalar"), "must return a scalar tensor"),
        (("one", "values", "--loss", "mistakes.py:no_gradient"), "the loss depends on no parameter that trains"),
        (("one", "values", "--loss", "mistakes.py:broken"), "the loss function fails on output of shape [64, 1]"),
        (("one", "values", "--loss", "mse_loss", "--label-smoothing", 0.1), "label smoothing is part of cross-entropy"),
        (("good", "classes", "--seed", 2**64), "--seed must lie between -2**63 and 2**63"),
        (("good", "classes", "--threads", 10**9), "--threads must be at least 1 and at most 1,024"),
    ],
)
def test_what_cannot_work_is_one_line(train, tmp_path, arguments, message):
    done = train(*arguments)
    assert done.status == 2, done
    assert message in done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("llpf: error: ")
    assert not (tmp_path / "x.pt").exists()


def test_another_batch_size_helps(train):
    done = train("Norm", "classes", "--batch-size", 60)
    assert done.status == 0, done.err
    assert "test accuracy " in done.out


def test_regression_says_its_test_loss(train, tmp_path):
    done = train("one", "values", "--loss", "mse_loss")
    assert done.status == 0, done.err
    assert "accuracy" not in done.out
    model = torch.nn.Linear(8, 1)
    model.load_state_dict(load_model_file(tmp_path / "x.pt").state)
    x = torch.randn(65, 8, generator=torch.Generator().manual_seed(0))
    expected = float((model(x[:20]) - torch.arange(20.0)[:, None] / 65).square().mean())
    assert f"test loss {expected:.4f}" in done.out
    doubled = train("one", "values", "--loss", "mistakes.py:doubled", "--lr", 0, "--init", "x.pt", "--overwrite")
    assert f"test loss {2 * expected:.4f}" in doubled.out


def test_what_was_trained_is_kept_where_it_cannot_be_evaluated(train, tmp_path):
    done = train("fussy", "classes")
    assert done.status == 2
    assert "x.pt is written, but on the training data the model's forward fails" in done.err
    assert "only in training" in done.err
    assert load_model_file(tmp_path / "x.pt").state["weight"].shape == (3, 8)


def test_looking_at_the_last_batch_leaves_no_trace():
    def trained(count):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4, momentum=0.5), torch.nn.Dropout(0.5))
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
        seen, random = [], []
        model[0].register_forward_hook(lambda *_: seen.append(model[1].num_batches_tracked.item()))
        model[0].register_forward_hook(lambda *_: random.append(torch.random.get_rng_state()))
        train_model(model, x[:count], torch.arange(count) % 4, seed=0, epochs=1, batch_size=8, lr=0.0)
        assert torch.equal(random[0], random[1]) == (count == 12), "dropout's numbers must not depend on the look"
        return seen, model[1].num_batches_tracked.item()

    assert trained(16) == ([0, 1], 2)
    assert trained(12) == ([0, 0, 1], 2)


def test_a_network_of_float64_is_trained_in_float64():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    model = train_model(torch.nn.Linear(3, 2).double(), x, y, seed=0, epochs=1)
    assert model.weight.dtype == torch.float64


def test_a_loss_of_ones_own_and_label_smoothing_do_not_mix():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(LLPFError, match="label smoothing is part of cross-entropy"):
        train_model(
            model, torch.ones(4, 2), torch.ones(4, 2), seed=0, loss_fn=torch.nn.functional.mse_loss, label_smoothing=0.1
        )
