"""Recipes: the shipped ones are valid and say what they should; overrides are typed; errors are one line."""

from __future__ import annotations

import pytest

from llpf_fast.data import dataset_names
from llpf_fast.errors import LLPFError
from llpf_fast.models import model_names
from llpf_fast.recipes import load_recipe, recipe_descriptions, recipe_names
from llpf_fast.settings import Settings, StageSettings

QUICK = "mlp-digits-m2m-quick"


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name):
    settings = load_recipe(name)
    assert settings.model in model_names()
    assert settings.data in dataset_names()
    assert recipe_descriptions()[name]


def test_the_named_recipes_ship():
    assert {"lenet5-mnist-m2m", "lenet5-mnist-m2m-quick", QUICK} <= set(recipe_names())


def test_the_authors_settings():
    settings = load_recipe("lenet5-mnist-m2m")
    assert (settings.max_ticks, settings.step.fixed, settings.step.relative) == (30000, 0.001, 0)
    assert settings.step.join_bias
    assert (settings.step.combine, settings.step.epsilon, settings.step.clamp) == ("max", 1e-4, False)
    correction = settings.correction
    assert (correction.window, correction.max_steps, correction.batch_size) == (5, 5, 64)
    assert (correction.lr, correction.momentum, correction.weight_decay) == (0.001, 0, 0)
    assert (settings.threshold, settings.correction_threshold) == (0.1, 0.1)


def test_overrides_are_typed_and_later_ones_win():
    settings = load_recipe(
        QUICK,
        [
            "step.relative=0.5",
            "step.relative=1e-3",
            "seed=7",
            "step={fixed: 2}",
            "schedule.stages=[{start: 0, layers: [fc1.*]}, {start: 9}]",
        ],
    )
    assert (settings.step.relative, settings.step.fixed, settings.seed) == (0.001, 2.0, 7)
    assert isinstance(settings.step.fixed, float)
    assert settings.step.join_bias, "an override of one key must leave its neighbours"
    assert settings.schedule.stages == [StageSettings(0, ["fc1.*"]), StageSettings(9, ["*"])]


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("max_ticks: 3\nstep: {relative: 0.2}\n")
    settings = load_recipe(file, ["threshold=0.4"])
    assert isinstance(settings, Settings)
    assert (settings.max_ticks, settings.step.relative, settings.threshold) == (3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step.relativ=0.1", "unknown key 'step.relativ'; did you mean 'step.relative'?"),
        ("relative=0.1", "unknown key 'relative'; did you mean 'step.relative'?"),
        ("momentun=0.1", "unknown key 'momentun'; did you mean 'correction.momentum'"),
        ("zzz=1", "unknown key 'zzz'; known here: model, data"),
        (
            "schedule.stages=[{strat: 3}]",
            "unknown key 'schedule.stages[0].strat'; did you mean 'schedule.stages[0].start",
        ),
        ("schedule.stages=[{start: x}]", "schedule.stages[0].start must be a whole number, got 'x'"),
        ("step.relative=abc", "step.relative must be a number, got 'abc'"),
        ("step.relative=[1]", "step.relative must be a number, got [1]"),
        ("step.combine=avg", "step.combine must be one of sum, max; got 'avg'"),
        ("seed=1.5", "seed must be a whole number, got 1.5"),
        ("step=3", "step is a group of keys (fixed, relative,"),
        ("max_ticks=null", "max_ticks must be a whole number, got None"),
        ("step.relative", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("schedule.stages=[{", "the value is not YAML"),
        ("step.relative=-1", "step.relative must not be negative"),
        ("correction.max_steps=1", "correction.max_steps (1) must be at least correction.window"),
        ("max_ticks=0", "max_ticks must be positive"),
    ],
)
def test_bad_overrides_are_one_line_that_names_the_key(override, message):
    with pytest.raises(LLPFError) as caught:
        load_recipe(QUICK, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_ticks: [", "is not YAML"),
        ("- 1\n- 2\n", "must be a mapping of settings, got list"),
        ("max_tick: 3", "unknown key 'max_tick'; did you mean 'max_ticks'?"),
        ("step: {relative: fast}", "step.relative must be a number, got 'fast'"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(LLPFError) as caught:
        load_recipe(str(file))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(LLPFError, match=r"unknown recipe 'mlp-digits'; did you mean 'mlp-digits-m2m-quick'\?"):
        load_recipe("mlp-digits")
    with pytest.raises(LLPFError, match=r"recipe file nowhere\.yaml cannot be read"):
        load_recipe("nowhere.yaml")
