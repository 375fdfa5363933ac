"""Settings given from Python, and words of YAML: what each value may be, and one line that names the key otherwise."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llpf_fast import LLPFError, Settings
from llpf_fast.modes import MODES
from llpf_fast.path.plain_values import check_kinds, read_yaml
from llpf_fast.recipes import load_recipe
from llpf_fast.settings import CorrectionSettings, LayerSettings, StageSettings, StepSettings

QUICK = "mlp-digits-m2m-quick"
#: A list of lists of lists ..., 10^13 items that fit into a few lines.
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghijklmn"))


def test_dicts_tuples_and_numpys_numbers_become_what_a_recipe_gives():
    given = Settings(
        seed=np.int64(3),
        threshold=np.float32(0.5),
        max_ticks=np.int32(7),
        step={"relative": 1, "join_bias": np.bool_(True)},
        layers={"keep": ("a", "b")},
        correction={"lr": np.float64(0.1), "cuda_graph": "off"},
        schedule={"stages": ({"start": 0}, StageSettings(5, ("x",)))},
    )
    plain = Settings(
        seed=3,
        threshold=0.5,
        max_ticks=7,
        step=StepSettings(relative=1.0, join_bias=True),
        layers=LayerSettings(keep=["a", "b"]),
        correction=CorrectionSettings(lr=0.1, cuda_graph="off"),
        schedule={"stages": [StageSettings(0), StageSettings(5, ["x"])]},
    )
    assert given == plain
    for value in (given.seed, given.max_ticks, given.threshold, given.step.relative, given.correction.lr):
        assert type(value) in (int, float)
    assert type(given.step.join_bias) is bool


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": {"relativ": 0.1}}, "unknown key 'step.relativ'; did you mean 'step.relative'?"),
        ({"schedule": {"stages": [{"begin": 0}]}}, "unknown key 'schedule.stages[0].begin'; known here: start"),
        ({"step": {1: 2}}, "unknown key 'step.1'"),
        ({"step": {"relative": "0.1"}}, "step.relative must be a number, got '0.1'"),
        ({"treshold": 0.1}, "unknown key 'treshold'; did you mean 'threshold'?"),
        ({"step": 0.1}, "step is a group of keys (fixed, relative, combine, clamp, epsilon, join_bias), got 0.1"),
        ({"step": LayerSettings()}, "combine, clamp, epsilon, join_bias), got LayerSettings("),
        ({"step": None}, "step is a group of keys (fixed, relative"),
        ({"schedule": {"stages": StageSettings(0)}}, "schedule.stages must be a list, got StageSettings("),
        ({"schedule": {"stages": [3]}}, "schedule.stages[0] is a group of keys (start, layers, distance), got 3"),
        ({"schedule": {"stages": [{"start": "0"}]}}, "schedule.stages[0].start must be a whole number, got '0'"),
        ({"layers": {"keep": "conv1"}}, "layers.keep must be a list, got 'conv1'"),
        ({"layers": {"keep": [1]}}, "layers.keep[0] must be text, got 1"),
        ({"spheres": {"radii": [1.0]}}, "spheres.radii must be names with values, got [1.0]"),
        ({"spheres": {"radii": {"*": "1"}}}, "spheres.radii['*'] must be a number, got '1'"),
        ({"spheres": {"radii": {1: 1.0}}}, "a name in spheres.radii must be text, got 1"),
        ({"max_ticks": True}, "max_ticks must be a whole number, got True"),
        ({"max_ticks": 10.0}, "max_ticks must be a whole number, got 10.0"),
        ({"max_ticks": "10"}, "max_ticks must be a whole number, got '10'"),
        ({"max_ticks": None}, "max_ticks must be a whole number, got None"),
        ({"seed": 2**63}, "seed must lie between -2**63 and 2**63"),
        # Above 1 a search would arrive on a way above the threshold.
        ({"arrival": {"margin": 1.01}}, "arrival.margin must be at most 1, got 1.01"),
        ({"pacing": {"margin": 2}}, "pacing.margin must be at most 1, got 2"),
        ({"threshold": False}, "threshold must be a number, got False"),
        ({"threshold": 10**400}, "threshold must be a number, got 1000"),
        ({"threshold": torch.tensor(0.1)}, "threshold must be a number, got tensor(0.1000)"),
        ({"threshold": np.array([0.1, 0.2])}, "threshold must be a number, got array([0.1, 0.2])"),
        ({"mode": np.array(["m2m", "m2o"])}, "mode must be one of m2m, m2o"),
        ({"mode": None}, f"mode must be one of {', '.join(MODES)}; got None"),
        ({"model": None}, "model must be text, got None"),
        ({"model": SimpleNamespace()}, "model must be text, got namespace()"),
        ({"correction": {"compile": 1}}, "correction.compile must be true or false, got 1"),
        ({"correction": {"cuda_graph": False}}, "correction.cuda_graph must be one of auto, on, off, while; got False"),
        ({"schedule": {"ticks": 1.5}}, "schedule.ticks must be a whole number, got 1.5"),
    ],
)
def test_anything_else_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(LLPFError) as caught:
        Settings(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["override", "file"])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("correction.cuda_graph", word, word) for word in ("off", "on", "auto")),
        *(("correction.cuda_graph", word, "off") for word in ("'off'", "false", "False")),
        ("correction.cuda_graph", "true", "on"),
        *(("step.join_bias", word, True) for word in ("on", "yes", "Yes", "true", "'on'")),
        *(("step.clamp", word, False) for word in ("off", "no", "NO", "false")),
        ("step.clamp", "null", None),
        ("layers.keep", "[off, no, on, y]", ["off", "no", "on", "y"]),
        ("correction.lr", "1e-3", 0.001),
        ("correction.lr", "1E+1", 10.0),
        ("correction.lr", "5.", 5.0),
        ("seed", "010", 10),
        ("seed", "0x10", 16),
        ("seed", "+7", 7),
    ],
)
def test_words_and_numbers_of_yaml(tmp_path, how, key, text, value):
    if how == "override":
        settings = load_recipe(QUICK, [f"{key}={text}"])
    else:
        file = tmp_path / "mine.yaml"
        group, _, name = key.rpartition(".")
        file.write_text(f"{group}: {{{name}: {text}}}\n" if group else f"{name}: {text}\n")
        settings = load_recipe(file)
    found = settings
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold: 1\nthreshold: 2\n", "threshold is given twice"),
        ("step: {relative: 1, relative: 2}\n", "relative is given twice"),
        ("step: " + "[" * 600, "is not YAML: nested too deeply"),
        ("threshold: 2001-99-99\n", "threshold must be a number, got '2001-99-99'"),
        ("threshold: !!int x\n", "is not YAML"),
        (BOMB, "is not YAML: more than 1,000,000 values"),
        ("threshold: &a [*a]\n", "is not YAML: nested too deeply"),
        ("threshold: 1:30\n", "threshold must be a number, got '1:30'"),
        ("correction: {cuda_graph: maybe}\n", "correction.cuda_graph must be one of auto, on, off, while; got 'maybe'"),
        ("step: {clamp: perhaps}\n", "step.clamp must be true or false, got 'perhaps'"),
        ("mode: off\n", "mode must be one of m2m"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(LLPFError) as caught:
        load_recipe(file)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_encodings(tmp_path, encoding):
    file = tmp_path / "mine.yaml"
    file.write_bytes("max_ticks: 3 # é\n".encode(encoding))
    if encoding != "latin-1":
        assert load_recipe(file).max_ticks == 3
        return
    with pytest.raises(LLPFError, match=r"mine\.yaml is not YAML"):
        load_recipe(file)


def test_a_recipe_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("max_ticks: 3\n")
    assert load_recipe("~/mine.yaml").max_ticks == 3
    with pytest.raises(LLPFError, match=r"~nobody-of-this-name/x\.yaml cannot be read"):
        load_recipe("~nobody-of-this-name/x.yaml")


def test_read_yaml_knows_plain_values_only():
    assert read_yaml("a: 1\nb: [x, null, ~, 1.5]\n") == {"a": 1, "b": ["x", None, None, 1.5]}
    assert read_yaml(b"") is None
    for text in ("!!python/name:os.system", "a: *b", "{", b"\xff\xfe\xff", "\0", "? {a: 1}\n: 2\n"):
        with pytest.raises(ValueError, match=r"\w"):
            read_yaml(text)


def test_check_kinds_names_file_and_key():
    kinds = {"a": {"b": "number"}, "c": "list of numbers"}
    for fine in ({}, {"a": None}, {"a": {}}, {"a": {"b": float("nan"), "x": "y"}, "c": [1, 2.5], "z": 3}):
        check_kinds(fine, kinds, "file")
    for bad, said in (
        ({"a": 3}, "file is damaged: a must be names with values, it is 3"),
        ({"a": {1: 2}}, "a must be names with values"),
        ({"a": {"b": "1"}}, r"a\.b must be number, it is '1'"),
        ({"a": {"b": True}}, r"a\.b must be number"),
        ({"a": {"b": 2**70}}, r"a\.b must be number"),
        ({"c": [1, "2"]}, "c must be list of numbers"),
    ):
        with pytest.raises(LLPFError, match=said):
            check_kinds(bad, kinds, "file")


def test_a_group_made_alone_names_its_keys_in_full():
    with pytest.raises(LLPFError, match=r"^step\.relative must be a number, got 'x'$"):
        StepSettings(relative="x")
    with pytest.raises(LLPFError, match=r"^unknown key 'correction\.min_rounds'; "):
        CorrectionSettings(min_rounds=5)


def test_changes_within_a_group_leave_its_other_keys():
    settings = Settings(arrival={"every": 3}).changed(arrival={"margin": 0.5}, seed=2)
    assert (settings.arrival.every, settings.arrival.margin, settings.seed) == (3, 0.5, 2)
    with pytest.raises(LLPFError, match=r"unknown key 'arrival\.evry'; did you mean 'arrival\.every'\?"):
        settings.changed(arrival={"evry": 1})
    with pytest.raises(FrozenInstanceError):
        settings.seed = 3


def test_a_correction_ends_at_the_threshold_of_the_path_or_below():
    assert Settings(threshold=0.3).correction_threshold == 0.3
    assert Settings(threshold=0.3, correction={"threshold": 0.2}).correction_threshold == 0.2
    with pytest.raises(LLPFError, match=r"correction\.threshold \(0\.2\) is above threshold \(0\.1\)"):
        Settings(threshold=0.1, correction={"threshold": 0.2})
