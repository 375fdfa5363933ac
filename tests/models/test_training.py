"""Options of training: optimizers, schedules, smoothing, augmentation, checkpoints; from Python and by llpf train."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from llpf_fast.batches.augment import augmentation
from llpf_fast.cli import train as train_command
from llpf_fast.cli.main import main
from llpf_fast.data import load_dataset
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model, train_model
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
        (("--augmentation-epochs", 3), "--augmentation-epochs must be 0 to 2, got 3"),
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


DROPPING = """
import torch
from torch import nn

def net():
    hidden = [nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*hidden, nn.Linear(32, 10))
"""


def test_a_training_killed_several_times_ends_with_the_same_bits(tmp_path):
    """kill -9 at moments that nothing synchronizes: between epochs, within one, while a file is written."""
    (tmp_path / "mine.py").write_text(DROPPING)
    command = ["train", "--model", "mine.py:net", "--data", "digits", "--threads", "1", "--quiet", "--epochs", "24"]
    command += ["--lr", "0.2", "--lr-schedule", "one-cycle", "--batch-size", "8", "--checkpoint-epochs", "0", "3", "24"]

    def start(*more):
        run = [sys.executable, "-m", "llpf_fast.cli.main", *command, *more]
        return subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def epochs_done():
        try:
            return torch.load(tmp_path / "end.pt.resume", weights_only=True)["state"]["epoch"]
        except FileNotFoundError:
            return 0

    whole = start("--out", "whole.pt")
    printed, errors = whole.communicate()
    assert whole.returncode == 0, errors
    for kill_after in (2, 9, 17):
        process = start("--out", "end.pt", "--resume")
        while process.poll() is None and epochs_done() < kill_after:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        assert not (tmp_path / "end.pt").exists()
        assert kill_after <= epochs_done() < 24
    again = start("--out", "end.pt")
    assert "end.pt.resume is an interrupted training: go on with --resume" in again.communicate()[1]
    third = (tmp_path / "end-epoch3.pt").stat().st_mtime_ns
    last = start("--out", "end.pt", "--resume")
    resumed, errors = last.communicate()
    assert last.returncode == 0, errors
    assert (tmp_path / "end-epoch3.pt").stat().st_mtime_ns == third, "the first epochs were trained again"
    assert resumed.split(", ")[1:-1] == printed.split(", ")[1:-1], "losses and accuracies printed"
    for name in ("{}.pt", "{}-epoch0.pt", "{}-epoch3.pt", "{}-epoch24.pt"):
        states = [load_model_file(tmp_path / name.format(which)).state for which in ("whole", "end")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name
    assert not list(tmp_path.glob("*.resume"))


def test_resume_of_another_training_is_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "end.pt"
    monkeypatch.setattr(train_command, "_read_state", lambda file, identity: written.update(identity) or stop())
    written = {}

    def stop():
        raise LLPFError("read")

    (tmp_path / "end.pt.resume").write_text("no state")
    assert llpf_train("--out", out, "--epochs", 2, "--resume") == 2
    monkeypatch.undo()
    assert llpf_train("--out", out, "--epochs", 2, "--resume") == 2
    assert "end.pt.resume is no state of a training" in capsys.readouterr().err
    for changed, message in (
        ({"lr": 0.5}, "end.pt.resume: lr was 0.5, is 0.01; or begin anew with --overwrite"),
        ({"sha256": "another"}, "end.pt.resume: the training data differ; or begin"),
    ):
        torch.save({"identity": written | changed, "state": {}}, tmp_path / "end.pt.resume")
        assert llpf_train("--out", out, "--epochs", 2, "--resume") == 2
        assert message in capsys.readouterr().err
    assert llpf_train("--out", out, "--epochs", 2, "--overwrite") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["end.pt"]


def test_the_training_loss_printed_is_that_of_eval_mode_on_all_images(tmp_path, capsys):
    out = tmp_path / "end.pt"
    assert llpf_train("--out", out, "--epochs", 2) == 0
    model = build_model("mlp")
    model.load_state_dict(load_model_file(out).state)
    inputs, targets = load_dataset("digits").train
    with torch.no_grad():
        loss = float(F.cross_entropy(model.eval()(inputs), targets))
    assert f": training loss {loss:.4f}, test accuracy 0." in capsys.readouterr().out


def test_a_checkpoint_that_exists_is_not_replaced(tmp_path, capsys):
    (tmp_path / "end-epoch1.pt").write_text("mine")
    assert llpf_train("--out", tmp_path / "end.pt", "--epochs", 1, "--checkpoint-epochs", 1) == 2
    assert "end-epoch1.pt exists already" in capsys.readouterr().err


class Restless(nn.Module):
    """All that changes while a network trains: weights, statistics, dropout's draws, a buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, images):
        if self.training:
            self.passes += 1
        hidden = F.dropout(self.norm(self.conv(images)).relu(), 0.5, self.training).mean((2, 3))
        return self.linear(hidden) * (1 + 0.1 * self.passes)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "one-cycle", "channels_last": True},
        {"schedule": "steps", "lr_epochs": [2, 4], "warmup_epochs": 1, "momentum": 0.0},
        {"schedule": "cosine", "warmup_epochs": 2, "optimizer": "adamw", "precision": "bfloat16"},
        {"augment": augmentation("cifar"), "augment_epochs": 3, "label_smoothing": 0.1, "weight_decay": 0.01},
        {"loader": True},
    ],
)
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_training_resumed_after_an_epoch_has_the_bits_of_one_that_was_not_interrupted(options, after):
    torch.manual_seed(0)
    inputs, targets = torch.randn(18, 1, 8, 8), torch.randint(0, 2, (18,))
    options, states = dict(options), {}
    data = (inputs, targets)
    if options.pop("loader", False):
        data = (DataLoader(TensorDataset(*data), batch_size=4, shuffle=True), None)

    def keep(at):
        content = io.BytesIO()
        torch.save(at.state(), content)
        states[at.epoch] = content.getvalue()

    def trained(resume=None):
        torch.manual_seed(1 if resume is None else 2)
        return train_model(
            Restless(), *data, seed=1, epochs=5, batch_size=4, lr=0.1, progress=keep, resume=resume, **options
        )

    whole = trained()
    last = states.pop(5)
    saved = torch.load(io.BytesIO(states[after] if after < 5 else last), weights_only=True)
    states.clear()
    resumed = trained(saved)
    assert list(states) == list(range(after + 1, 6))
    assert not resumed.training
    for name, value in (whole.state_dict() | {"passes": whole.passes}).items():
        assert torch.equal((resumed.state_dict() | {"passes": resumed.passes})[name], value), name


def test_a_state_of_another_training_is_refused():
    states = []
    train(epochs=1, progress=lambda at: states.append(at.state()))
    with pytest.raises(LLPFError, match=r"^the state to resume is of another training: RuntimeError: .*weight"):
        train_model(nn.Linear(2, 2), torch.ones(4, 2), torch.zeros(4).long(), seed=0, resume=states[0])
    with pytest.raises(LLPFError, match="another training: KeyError: 'optimizer'"):
        train(resume={"model": states[0]["model"], "buffers": {}})


def test_images_are_augmented_in_the_first_epochs_only():
    images = []
    train(images, epochs=3, augment=lambda batch, key: batch * 0, augment_epochs=2)
    assert [bool(batch.any()) for batch in images] == [False] * 2 * STEPS + [True] * STEPS


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
