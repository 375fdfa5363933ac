"""What wrappers put before names is left out only where the result is the expected architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast.errors import LLPFError
from llpf_fast.path import match_names
from llpf_fast.path.model_file import is_averaged

EXPECTED = ["conv.weight", "conv.bias", "head.weight"]
VALUES = {name: number for number, name in enumerate(EXPECTED)}


def prefixed(prefix: str) -> dict[str, int]:
    return {prefix + name: value for name, value in VALUES.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "model.", "net.", "network.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."),
        *("model._orig_mod.", "_forward_module.model.", "model.net.", "module.module.", "_fsdp_wrapped_module."),
    ],
)
def test_wrappers_are_left_out(prefix):
    assert match_names(prefixed(prefix), EXPECTED, "a.pt") == VALUES
    assert list(match_names(prefixed(prefix), EXPECTED, "a.pt")) == EXPECTED


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_wrapped_architecture_takes_plain_names(prefix):
    assert match_names(VALUES, [prefix + name for name in EXPECTED], "a.pt") == prefixed(prefix)


def test_compiled_parts_inside():
    entries = {"conv._orig_mod.weight": 0, "conv._orig_mod.bias": 1, "head.weight": 2}
    assert match_names(entries, EXPECTED, "a.pt") == VALUES


def test_an_architecture_whose_own_attribute_is_called_so_keeps_its_names():
    names = [f"model.{name}" for name in EXPECTED]
    assert match_names(prefixed("model."), names, "a.pt") == prefixed("model.")
    assert match_names(prefixed("module.model."), names, "a.pt") == prefixed("model.")


@pytest.mark.parametrize(
    "entries",
    [
        prefixed("encoder."),
        {"module.conv.weight": 0, "conv.bias": 1, "head.weight": 2},
        {"model.conv.weight": 0, "model.conv.bias": 1},
        prefixed("model_"),
        {"conv_orig_mod.weight": 0, "conv_orig_mod.bias": 1, "head.weight": 2},
        {"conv.weight": 0, "_orig_mod.conv.weight": 5, "conv.bias": 1, "head.weight": 2},
    ],
    ids=["unknown prefix", "not shared", "a tensor missing", "no dot", "part of a name", "two become one"],
)
def test_what_does_not_fit_exactly_keeps_its_names(entries):
    assert match_names(entries, EXPECTED, "a.pt") == entries


def test_only_whole_attributes_are_left_out():
    assert match_names({"a_orig_mod.b": 0}, ["ab"], "a.pt") == {"a_orig_mod.b": 0}
    assert match_names({"a._orig_mod.b": 0}, ["a.b"], "a.pt") == {"a.b": 0}


def test_a_second_network_is_refused_not_guessed():
    both = prefixed("model.") | {f"criterion.{i}": i for i in range(2)}
    with pytest.raises(LLPFError, match=r"a\.pt holds the network under 'model' .* 2 under 'criterion'; save those"):
        match_names(both, EXPECTED, "a.pt")
    averaged = prefixed("module.") | {"n_averaged": 7}
    with pytest.raises(LLPFError, match=r"1 under 'n_averaged' \(averaged weights\)"):
        match_names(averaged, EXPECTED, "a.pt")
    twice = prefixed("model.") | prefixed("ema_model.")
    with pytest.raises(LLPFError, match=r"2 networks of the expected architecture \(under 'model' and 'ema_model'"):
        match_names(twice, EXPECTED, "a.pt")
    with pytest.raises(LLPFError, match="under no prefix and 'ema'"):
        match_names(VALUES | prefixed("ema."), EXPECTED, "a.pt")


def test_with_torchs_own_wrappers():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    expected = model.state_dict()
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        names = wrapped.state_dict().keys()
        assert names != expected.keys()
        assert match_names(wrapped.state_dict(), expected, "a.pt").keys() == expected.keys()
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    with pytest.raises(LLPFError, match="averaged weights"):
        match_names(averaged, expected, "a.pt")


@pytest.mark.parametrize(
    ("name", "averaged"),
    [
        *[(name, True) for name in ("ema", "model_ema", "state_dict_ema", "ema_model.conv", "swa", "teacher.w")],
        *[(name, False) for name in ("schema", "emanuel", "model", "memory", "swap.weight", "semantic")],
    ],
)
def test_is_averaged(name, averaged):
    assert is_averaged(name) is averaged
