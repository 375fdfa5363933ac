"""Options of training: optimizers, schedules, smoothing, augmentation, checkpoints; from Python and by llpf train."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from llpf_fast.batches.augment import augmentation
from llpf_fast.cli.main import main
from llpf_fast.errors import LLPFError
from llpf_fast.models import train_model
from llpf_fast.path import load_model_file
from tests.host_waits import host_waits

EPOCHS, STEPS = 8, 4


class Line(nn.Module):
    """One weight; with targets of one class and no other, the gradient of the loss is 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.weight * images.flatten(1)


def train(images_used=None, **options):
    """16 images in 4 batches an epoch; ``images_used`` collects the batches that the network gets."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 1, 1, 2), torch.randint(0, 2, (16,))
    model = Line()
    if images_used is not None:
        model.register_forward_hook(lambda _module, args, _output: images_used.append(args[0]))
    return train_model(model, inputs, targets, seed=1, batch_size=4, **{"epochs": EPOCHS, **options})


def rates(monkeypatch, **options):
    """Learning rates that the optimizer was stepped with."""
    learning_rates = []
    step = torch.optim.SGD.step

    def recorded(self, *args):
        learning_rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    train(lr=0.4, **options)
    assert len(learning_rates) == EPOCHS * STEPS
    return learning_rates


def test_constant_rate(monkeypatch):
    assert set(rates(monkeypatch)) == {0.4}


def test_cosine_goes_to_zero(monkeypatch):
    total = EPOCHS * STEPS
    expected = [0.2 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates(monkeypatch, schedule="cosine") == pytest.approx(expected)


def test_steps_divide_by_ten_after_their_epochs(monkeypatch):
    learning_rates = rates(monkeypatch, schedule="steps", lr_epochs=[4, 6])
    assert learning_rates == pytest.approx([0.4] * 16 + [0.04] * 8 + [0.004] * 8)


def test_warm_up_comes_before_the_schedule(monkeypatch):
    learning_rates = rates(monkeypatch, schedule="steps", lr_epochs=[4], warmup_epochs=2)
    assert learning_rates[0] == pytest.approx(0.004)
    assert learning_rates[:8] == sorted(learning_rates[:8])
    assert learning_rates[8:] == pytest.approx([0.4] * 8 + [0.04] * 16)


def test_one_cycle_peaks_at_the_rate(monkeypatch):
    learning_rates = rates(monkeypatch, schedule="one-cycle")
    peak = learning_rates.index(max(learning_rates))
    assert 0 < peak < EPOCHS * STEPS / 2
    assert 0.36 < max(learning_rates) <= 0.4
    assert learning_rates[0] < 0.02
    assert learning_rates[-1] < 0.02


def test_adamw_and_its_decay():
    """The first step of AdamW is its learning rate whatever the gradient, beside the decay lr * decay * weight."""
    plain, decayed = (
        float(train(epochs=1, optimizer="adamw", lr=1e-3, weight_decay=decay).weight.detach()) for decay in (0.0, 100.0)
    )
    assert abs(plain - 1) <= STEPS * 1.001e-3
    assert decayed == pytest.approx((1 - 0.1) ** STEPS, abs=STEPS * 1.001e-3)


def test_label_smoothing_and_progress_are_the_loss_trained_on():
    reports, images = [], []
    train(images, epochs=1, lr=0.0, label_smoothing=0.5, progress=reports.append)
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 1, 1, 2), torch.randint(0, 2, (16,))
    expected = F.cross_entropy(inputs.flatten(1), targets, label_smoothing=0.5)
    assert reports[0].loss == pytest.approx(float(expected), rel=1e-5)
    assert reports[0].loss != pytest.approx(float(F.cross_entropy(inputs.flatten(1), targets)), rel=1e-2)


def test_every_batch_is_augmented_with_a_key_of_its_own():
    keys, images = [], []

    def augment(batch, key):
        keys.append(key)
        return batch * 0 + len(keys)

    train(images, augment=augment)
    assert [float(batch.flatten()[0]) for batch in images] == list(range(1, EPOCHS * STEPS + 1))
    assert len(set(keys)) == EPOCHS * STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"schedule": "linear"}, "lr schedule must be one of constant, .*, got 'linear'"),
        ({"schedule": "steps"}, "lr schedule 'steps' needs epochs"),
        ({"lr_epochs": [2]}, "lr schedule 'constant' takes no epochs"),
        ({"schedule": "one-cycle", "warmup_epochs": 1}, "'one-cycle' has its own rise"),
        ({"warmup_epochs": EPOCHS}, f"warm-up of {EPOCHS} epochs must end before epoch {EPOCHS}"),
        ({"schedule": "steps", "lr_epochs": [2], "warmup_epochs": 2}, "warm-up of 2 epochs must end before epoch 2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(LLPFError, match=message):
        train(**options)


def llpf_train(*options):
    return main(["train", "--model", "mlp", "--data", "digits", "--threads", "1", "--quiet", *map(str, options)])


def test_checkpoints_after_epochs_and_training_on_from_them(tmp_path):
    out = tmp_path / "end.model.pt"
    assert llpf_train("--out", out, "--epochs", 2, "--checkpoint-epochs", 0, 1, 2) == 0
    states = [load_model_file(tmp_path / f"end-epoch{epoch}.model.pt").state for epoch in (0, 1, 2)]
    assert all(torch.equal(value, states[2][name]) for name, value in load_model_file(out).state.items())
    assert not torch.equal(states[0]["fc1.weight"], states[1]["fc1.weight"])
    for child, rate in (("same", 0), ("other", 0.01)):
        file = tmp_path / f"{child}.pt"
        start = tmp_path / "end-epoch1.model.pt"
        assert llpf_train("--init", start, "--seed", 9, "--epochs", 1, "--lr", rate, "--out", file) == 0
        assert torch.equal(load_model_file(file).state["fc1.weight"], states[1]["fc1.weight"]) == (rate == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint-epochs", 3), "--checkpoint-epochs must be 0 to 2, got 3"),
        (("--lr-schedule", "steps", "--lr-epochs", 0), "--lr-epochs must be 1 to 2, got 0"),
        (("--label-smoothing", 1), "--label-smoothing must be at least 0 and below 1, got 1.0"),
        (("--augmentation", "imagenet"), "--augmentation: invalid choice: 'imagenet'"),
        (("--init", "no.pt"), "no.pt"),
    ],
)
def test_bad_options_of_the_command(options, message, tmp_path, capsys):
    assert llpf_train("--out", tmp_path / "end.pt", "--epochs", 2, *options) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("llpf: error: ")
    assert message in printed
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_exists_is_not_replaced(tmp_path, capsys):
    (tmp_path / "end-epoch1.pt").write_text("mine")
    assert llpf_train("--out", tmp_path / "end.pt", "--epochs", 1, "--checkpoint-epochs", 1) == 2
    assert "end-epoch1.pt exists already" in capsys.readouterr().err


class Recorder(nn.Module):
    """A convolution and a linear layer; records in which form passes run."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.records = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), []

    def forward(self, images):
        hidden = self.conv(images)
        last = hidden.is_contiguous(memory_format=torch.channels_last)
        weights = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.records.append((hidden.dtype, last, weights))
        return self.linear(hidden.mean((2, 3)))


def train_a_recorder(**options):
    torch.manual_seed(0)
    model, images, targets = Recorder(), torch.randn(16, 3, 6, 6), torch.randint(0, 2, (16,))
    with host_waits() as waits:
        train_model(model, images, targets, seed=1, epochs=2, batch_size=4, lr=0.1, schedule="one-cycle", **options)
    return model, waits


def test_precision_and_memory_order_reach_the_passes_and_nothing_else():
    full, _ = train_a_recorder()
    fast, _ = train_a_recorder(precision="bfloat16", channels_last=True, augment=augmentation("cifar"))
    assert set(full.records) == {(torch.float32, False, False)}
    assert set(fast.records) == {(torch.bfloat16, True, True)}
    same, _ = train_a_recorder(precision="bfloat16")
    for ours, theirs in zip(same.parameters(), full.parameters(), strict=True):
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in fast.parameters())


def test_the_host_waits_once_an_epoch():
    """Eight steps: the loss of each of two epochs is read; before the first step the highest class."""
    _, waits = train_a_recorder(precision="bfloat16", channels_last=True, augment=augmentation("cifar"))
    assert len([wait for wait in waits if "training.py" in wait]) == 2 + 1, waits


def test_a_network_that_needs_the_usual_order_is_told_so():
    class Views(Recorder):
        def forward(self, images):
            return self.linear(self.conv(images).view(-1, 4))

    with pytest.raises(LLPFError, match=r"does it run without channels last\?"):
        train_model(Views(), torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64), seed=0, channels_last=True)


def test_precision_of_no_device():
    with pytest.raises(LLPFError, match=r"^precision tf32 belongs to NVIDIA GPUs, not to cpu"):
        train(precision="tf32")
    with pytest.raises(LLPFError, match=r"^precision must be one of float32, tf32, bfloat16; got 'half'"):
        train(precision="half")


@pytest.mark.parametrize("name", ["end.pt", "end.safetensors"])
def test_the_checkpoint_says_how_it_was_trained(name, tmp_path):
    out = tmp_path / name
    assert llpf_train("--out", out, "--epochs", 1, "--precision", "bfloat16", "--channels-last", "--seed", 3) == 0
    assert load_model_file(out).model_name == "mlp"
    if name.endswith(".pt"):
        training = torch.load(out)["training"]
    else:
        with safe_open(out, "pt") as file:
            training = json.loads(file.metadata()["llpf_fast"])["training"]
    expected = {"seed": 3, "epochs": 1, "precision": "bfloat16", "channels_last": True, "batch_size": 64, "lr": 0.01}
    assert {key: training[key] for key in expected} == expected
