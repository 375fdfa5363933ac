"""Networks by name: their parameters, their inputs, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast.data import load_dataset
from llpf_fast.errors import LLPFError
from llpf_fast.models import accuracy, build_model, check_images, model_names, register_model, registry, train_model

LENET5 = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (10, 84),
    "fc3.bias": (10,),
}


def test_lenet5_is_the_authors():
    model = build_model("lenet5")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == LENET5
    assert sum(value.numel() for value in model.parameters()) == 61_706
    assert not any(layer.bias.abs().sum() for layer in model.children())


def test_lenet5_computes_what_its_layers_say():
    torch.manual_seed(0)
    model = build_model("lenet5")
    images = torch.randn(3, 1, 28, 28)
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    reference = nn.Sequential(
        model.conv1, relu, pool, model.conv2, relu, pool, nn.Flatten(), model.fc1, relu, model.fc2, relu, model.fc3
    )
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=0)
    assert model(images).shape == (3, 10)


def test_mlp_is_64_64_64_10():
    model = build_model("mlp")
    assert [tuple(w.shape) for w in model.parameters() if w.dim() == 2] == [(64, 64), (64, 64), (10, 64)]
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)


def test_a_seed_fixes_the_start():
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(build_model("lenet5").state_dict()["conv1.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_unknown_model_names_the_nearest():
    with pytest.raises(LLPFError, match="unknown model 'lenet'; did you mean 'lenet5'"):
        build_model("lenet")
    with pytest.raises(LLPFError, match=r"unknown model 'q'; known: cct7, dla, .*lenet5, mlp, "):
        build_model("q")


def test_wrong_keywords_are_named():
    with pytest.raises(LLPFError, match=r"model 'mlp' cannot be built with \{'width': 3\}"):
        build_model("mlp", width=3)


def test_wrong_image_size_is_named():
    check_images("lenet5", torch.zeros(2, 1, 28, 28))
    with pytest.raises(LLPFError, match="'lenet5' takes images of 1x28x28, these are 3x32x32"):
        check_images("lenet5", torch.zeros(2, 3, 32, 32))


def test_register_model(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("linear", lambda classes=10: nn.Linear(4, classes))
    assert "linear" in model_names()
    assert build_model("linear", classes=3).out_features == 3
    check_images("linear", torch.zeros(2, 4))
    with pytest.raises(LLPFError, match="'linear' is registered already"):
        register_model("linear", nn.Identity)
    register_model("linear", nn.Identity, replace=True)
    assert isinstance(build_model("linear"), nn.Identity)


def test_training_reaches_the_data_and_repeats():
    data = load_dataset("digits")
    states = []
    for round_ in range(2):
        torch.manual_seed(3)
        model = build_model("mlp")
        # The order of batches comes from the seed argument alone.
        torch.manual_seed(round_)
        reports = []
        model = train_model(model, *data.train, seed=3, epochs=8, lr=0.05, progress=reports.append)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not model.training
    assert [step.epoch for step in reports] == list(range(1, 9))
    assert reports[-1].loss < 0.2 < reports[0].loss
    assert accuracy(model, *data.test) > 0.93


def test_diverging_training_says_so():
    data = load_dataset("digits")
    with pytest.raises(LLPFError, match=r"training diverged in epoch \d.*lower the learning rate \(1e\+20\)"):
        train_model(build_model("mlp"), *data.train, seed=0, epochs=3, lr=1e20)
