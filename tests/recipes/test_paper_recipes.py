"""The recipes of the papers' networks: the authors' numbers, stages that fit the networks, a quick twin of each."""

from __future__ import annotations

import pytest

from llpf_fast.flat.layers import match_layers
from llpf_fast.models import build_model
from llpf_fast.recipes import load_recipe, recipe_names

#: Ticks, fixed and relative step; rounds of training, the loss they reach, batch: DFL_torch 9ded1ad,
#: tool/find_high_accuracy_path_config.
AUTHORS = {
    "lenet5-mnist-m2m": (30000, 0.001, 0, 5, 5, 0.1, 64),
    "lenet5-mnist-m2o": (1400, 0, 0.001, 5, 100, 0.02, 64),
    "lenet5-mnist-m2o-o": (1400, 0, 0.001, 5, 100, 0.02, 64),
    "resnet18-cifar10-m2m": (16000, 0, 0.001, 20, 20000, 0.005, 256),
    "resnet18-cifar10-m2o-o": (1400, 0, 0.001, 5, 5000, 0.02, 256),
    "resnet18-cifar100-m2m": (16000, 0, 0.001, 20, 20000, 0.04, 256),
    "resnet18-cifar100-m2o-o": (1000, 0, 0.001, 5, 5000, 0.01, 256),
    "cct7-cifar10-m2m": (40000, 0.001, 0.001, 10, 10000, 0.05, 128),
    "cct7-cifar10-m2o-o": (1400, 0, 0.001, 5, 5000, 0.03, 128),
}
STAGED = ["resnet18-cifar10-m2m", "resnet18-cifar100-m2m", "cct7-cifar10-m2m"]
#: Its stages begin by distance, not by tick.
BLOCKS = "resnet20-cifar10-m2m-quick"


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_numbers(name):
    settings = load_recipe(name)
    step, correction = settings.step, settings.correction
    assert AUTHORS[name] == (
        settings.max_ticks,
        step.fixed,
        step.relative,
        correction.window,
        correction.max_steps,
        settings.correction_threshold,
        correction.batch_size,
    )
    assert (correction.lr, correction.momentum, correction.weight_decay) == (0.001, 0, 0)
    assert settings.dialect == "authors"
    assert step.join_bias == (settings.model == "lenet5")
    assert settings.augmentation == ("mnist" if settings.data == "mnist" else "cifar")


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.endswith("-quick")])
def test_a_name_says_what_the_recipe_does_and_has_a_quick_twin(name):
    settings, quick = load_recipe(name), load_recipe(f"{name}-quick")
    assert name == f"{settings.model}-{settings.data}-{settings.mode}"
    for key in ("model", "data", "mode", "threshold"):
        assert getattr(settings, key) == getattr(quick, key), key
    assert quick.max_ticks <= settings.max_ticks / 10
    assert quick.step.relative > settings.step.relative


@pytest.mark.parametrize("name", [*STAGED, *(f"{name}-quick" for name in STAGED), BLOCKS])
def test_stages_add_layers_in_order_until_all_move(name):
    settings = load_recipe(name)
    layers = [key for key, _ in build_model(settings.model, classes=10).named_parameters()]
    before = [False] * len(layers)
    for stage in settings.schedule.stages:
        now = match_layers(layers, stage.layers)
        assert all(new for old, new in zip(before, now, strict=True) if old), "a layer stopped moving"
        assert sum(now) > sum(before)
        if settings.model in ("resnet18", "resnet20"):
            # Registration order is the network's own order.
            assert now == sorted(now, reverse=True)
        before = now
    assert all(before)
    if name == BLOCKS:
        assert all((stage.start, stage.distance) == (None, 0.5) for stage in settings.schedule.stages[1:])
        assert len(settings.schedule.stages) == 1 + 9 + 1
    else:
        assert settings.schedule.stages[-1].start < settings.max_ticks


def test_the_stages_of_cct7_are_its_blocks():
    stages = load_recipe("cct7-cifar10-m2m").schedule.stages
    layers = [key for key, _ in build_model("cct7").named_parameters()]
    assert [stage.start for stage in stages] == [5000 * k for k in range(8)]
    for count, stage in enumerate(stages):
        moving = [layer for layer, hit in zip(layers, match_layers(layers, stage.layers), strict=True) if hit]
        blocks = {layer.split(".")[2] for layer in moving if layer.startswith("classifier.blocks.")}
        assert blocks == {str(k) for k in range(count)}
        assert {"tokenizer.conv_layers.0.0.weight", "classifier.fc.bias"} <= set(moving)
