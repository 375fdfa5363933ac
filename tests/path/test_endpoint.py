"""``load_endpoint``: a network from any source as a state dict of the architecture, or one line that says why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from llpf_fast import LLPFError
from llpf_fast.path import load_model_file, save_model_file
from llpf_fast.path.endpoint import load_endpoint, same_value


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = self.again = nn.BatchNorm1d(3)


class Extra(nn.Linear):
    def __init__(self, extra: Any = None) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def refused(source: Any, module: nn.Module) -> str:
    with pytest.raises(LLPFError) as caught:
        load_endpoint(source, module, "start")
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_is(state: dict[str, Tensor], module: nn.Module) -> None:
    """Names, order, dtypes and bits of ``module``."""
    expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)


@pytest.fixture(params=["module", "mapping", "checkpoint", "pt", "safetensors"])
def hand_over(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The same network in every form that it can be given in."""

    def give(module: nn.Module) -> Any:
        state, kind = module.state_dict(), request.param
        if kind == "pt":
            torch.save(state, tmp_path / "a.pt")
        if kind == "safetensors":
            save_model_file(tmp_path / "a.safetensors", state)
        forms = {"module": module, "mapping": state, "checkpoint": {"epoch": 3, "state_dict": state}}
        return forms.get(kind, tmp_path / f"a.{kind}")

    return give


@pytest.mark.filterwarnings("error")
def test_wrapped_networks_in_every_form(hand_over) -> None:
    module = net()
    for wrap in (lambda m: m, compiled, nn.DataParallel, lambda m: nn.DataParallel(compiled(m))):
        assert_is(load_endpoint(hand_over(wrap(module)), net(), "start"), module)
        assert_is(load_endpoint(hand_over(module), wrap(net()), "start"), module)
        assert_is(load_endpoint(hand_over(wrap(module)), wrap(net()), "start"), module)


def test_compiled_parts_on_either_side(hand_over) -> None:
    module, part = net(), net()
    part.load_state_dict(module.state_dict())
    part[0] = compiled(part[0])
    assert_is(load_endpoint(hand_over(part), module, "start"), module)
    assert next(iter(load_endpoint(hand_over(module), part, "start"))) == "0._orig_mod.weight"
    assert_is(load_endpoint(hand_over(module), part, "start"), part)


def test_a_module_is_copied_and_a_state_dict_is_not() -> None:
    module = net()
    copy = load_endpoint(module, net(), "start")
    state = load_endpoint(module.state_dict(), net(), "start")
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight += 1
    assert torch.equal(copy["0.weight"], before)
    assert state["0.weight"].data_ptr() == module[0].weight.data_ptr()
    assert not state["0.weight"].requires_grad


# -- names and shapes


def test_other_architectures_are_named() -> None:
    wide = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    message = refused(wide.state_dict(), net())
    assert "the model and start are different architectures: the model has 0.weight [3,4], start has [5,4]" in message
    message = refused(net(), nn.Linear(4, 2))
    assert "different architectures: the model has weight [2,4], start has none" in message


def test_the_expected_network_among_others_is_not_guessed() -> None:
    state = {f"model.{name}": value for name, value in net().state_dict().items()}
    message = refused({**state, "ema.0.weight": torch.ones(2)}, net())
    assert "start holds the network under 'model' and other tensors beside it: 1 under 'ema' (averaged" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "start must be a module, a state dict or a file, got int"),
        ({}, "start is a dictionary without tensors"),
        ({"weight": torch.ones(2, 2), "bias": [0.0, 0.0]}, "start: entry 'bias' is a list"),
        ({"weight": torch.ones(2, 2).to_sparse(), "bias": torch.ones(2)}, "'weight' is sparse"),
        ({"weight": torch.ones(2, 2, device="meta"), "bias": torch.ones(2)}, "without values"),
        ({"weight": nn.UninitializedParameter(), "bias": torch.ones(2)}, "'weight' is lazy"),
        ({"weight": torch.full((2, 2), torch.nan), "bias": torch.ones(2)}, "start: tensor 'weight' has 4 NaN of 4"),
    ],
)
def test_what_is_no_state_dict_is_named(source, message) -> None:
    assert message in refused(source, nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_are_named() -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    for make, part in (
        (nn.utils.weight_norm, "the old torch.nn.utils.weight_norm made of '0.weight'; call torch.nn.utils.remove_wei"),
        (nn.utils.spectral_norm, "the old torch.nn.utils.spectral_norm made of '0.weight'"),
        (lambda m: prune.l1_unstructured(m, "weight", 2), "torch.nn.utils.prune made of '0.weight'; call torch.nn"),
    ):
        state = nn.Sequential(make(nn.Linear(3, 2))).state_dict()
        message = refused(state, module)
        assert part in message
        assert "different architectures" not in message
    state = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))).state_dict()
    assert "the old torch.nn.utils.weight_norm" in refused(
        state, nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    )


# -- ties


def test_one_name_of_a_tie_is_enough(tmp_path) -> None:
    tied = Tied()
    safetensors.torch.save_model(tied, str(tmp_path / "a.safetensors"))
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert len(tensors) == len(tied.state_dict()) - 6
    assert_is(load_endpoint(tmp_path / "a.safetensors", Tied(), "start"), tied)
    torch.save({"model": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "b.pt")
    assert_is(load_endpoint(tmp_path / "b.pt", Tied(), "start"), tied)
    for alias in ("head.weight", "embed.weight"):
        state = tied.state_dict()
        del state[alias]
        state_of_tied = load_endpoint(state, Tied(), "start")
        assert_is(state_of_tied, tied)
        assert state_of_tied["head.weight"] is state_of_tied["embed.weight"]


def test_a_tie_without_any_name_is_missing() -> None:
    state = Tied().state_dict()
    del state["head.weight"], state["embed.weight"]
    assert "the model has embed.weight [7,3], start has none" in refused(state, Tied())


def test_a_name_that_is_no_alias_is_missing() -> None:
    state = Tied().state_dict()
    del state["head.weight"], state["body.bias"]
    assert "the model has body.bias [3], start has none" in refused(state, Tied())


def test_tied_names_that_differ_are_refused() -> None:
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    assert load_endpoint(state, Tied(), "start")
    state["head.weight"][0, 0] += 1
    assert "start: 'embed.weight' and 'head.weight' are one tensor of the model but have different values" in refused(
        state, Tied()
    )


# -- dtypes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_shorter_floats_become_the_modules_without_a_word(dtype, hand_over) -> None:
    short = net().to(dtype) if dtype != torch.float8_e4m3fn else net()
    if dtype == torch.float8_e4m3fn:
        with torch.no_grad():
            for parameter in short.parameters():
                parameter.copy_(parameter.to(dtype))
        source = {n: v.to(dtype) if v.is_floating_point() else v for n, v in short.state_dict().items()}
    else:
        source = hand_over(short)
    assert_is(load_endpoint(source, net(), "start"), short.float())


@pytest.mark.filterwarnings("error")
def test_float64_that_fits_is_no_reason_for_a_word(hand_over) -> None:
    module = net()
    wide = net().double()
    wide.load_state_dict(module.state_dict())
    assert_is(load_endpoint(hand_over(wide), net(), "start"), module)


def test_rounding_is_said_once(hand_over) -> None:
    wide = net().double()
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter += torch.randn_like(parameter)
    with pytest.warns(
        UserWarning, match="rounded from float64 to float32, as the model has them .*'0.weight'"
    ) as caught:
        state = load_endpoint(hand_over(wide), net(), "start")
    assert len(caught) == 1
    assert_is(state, wide.float())


def test_values_beyond_the_range_are_refused() -> None:
    state = net().double().state_dict()
    state["0.weight"][0, 0] = 1e300
    message = refused(state, net())
    assert "start: '0.weight' is float64 with values beyond the range of the model's float32" in message
    assert "convert the model to float64" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_parameters_that_are_no_real_floats_are_refused(dtype) -> None:
    state = net().state_dict()
    state["0.weight"] = state["0.weight"].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    assert f"start: parameter '0.weight' is {kind} where the model has float32" in refused(state, net())
    module = nn.Module()
    module.table = nn.Parameter(torch.ones(2).to(dtype), requires_grad=False)
    assert f"parameter 'table' of the model is {kind}" in refused(module.state_dict(), module)


@pytest.mark.filterwarnings("error")
def test_buffers_take_the_modules_dtype_where_nothing_is_lost() -> None:
    module = net()
    module.register_buffer("mask", torch.tensor([True, False]))
    module.register_buffer("phase", torch.tensor([1 + 2j]))
    state = module.state_dict()
    other = {**state, "1.num_batches_tracked": torch.tensor(0.0), "mask": torch.tensor([1, 0], dtype=torch.uint8)}
    assert_is(load_endpoint({**other, "phase": state["phase"].to(torch.complex128)}, module, "start"), module)
    for name, value, kinds in (
        ("mask", torch.tensor([2, 0]), "int64 with values that bool"),
        ("1.num_batches_tracked", torch.tensor(0.5), "float32 with values that int64"),
        ("1.running_mean", torch.zeros(3, dtype=torch.complex64), "complex64 with values that float32"),
    ):
        assert f"start: {name!r} is {kinds}, as the model has it, cannot hold" in refused(
            {**state, name: value}, module
        )


# -- buffers that are no statistics


def test_a_mask_may_be_infinite_and_statistics_may_not(hand_over) -> None:
    module = net()
    module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    assert_is(load_endpoint(hand_over(module), module, "start"), module)
    module[1].running_var[1] = torch.inf
    assert "tensor '1.running_var' has 1 infinite of 3 values" in refused(hand_over(module), net_with_mask())


def net_with_mask() -> nn.Module:
    module = net()
    module.register_buffer("mask", torch.zeros(2, 2))
    return module


# -- extra state


VALUES = [
    None,
    b"bytes",
    {"scale": torch.tensor([1.0, 2.0]), "steps": [1, (2.5, "x")]},
    float("nan"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_equal_extra_state_is_left_out(tmp_path, value) -> None:
    source, module = nn.Sequential(Extra(value)), nn.Sequential(Extra(value))
    torch.save(source.state_dict(), tmp_path / "a.pt")
    without = {name: v for name, v in source.state_dict().items() if isinstance(v, Tensor)}
    for given in (
        source,
        source.state_dict(),
        compiled(source),
        compiled(source).state_dict(),
        without,
        tmp_path / "a.pt",
    ):
        state = load_endpoint(given, module, "start")
        assert list(state) == ["0.weight", "0.bias"]
        assert_is(state, source)
    assert load_model_file(tmp_path / "a.pt", module.state_dict()).state.keys() == {"0.weight", "0.bias"}


def test_bytes_in_memory_are_compared(tmp_path) -> None:
    torch.save(Extra(io.BytesIO(b"ab")).state_dict(), tmp_path / "a.pt")
    assert load_endpoint(tmp_path / "a.pt", Extra(io.BytesIO(b"ab")), "start")
    assert "different extra state '_extra_state'" in refused(tmp_path / "a.pt", Extra(io.BytesIO(b"ac")))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"steps": 1}, {"steps": 2}),
        ({"steps": 1}, {"steps": True}),
        ({"steps": 1}, {"ticks": 1}),
        ([1.0], [1.0, 2.0]),
        (b"a", b"b"),
        ({"scale": torch.ones(2)}, {"scale": torch.tensor([1.0, 2.0])}),
        ({"scale": np.ones(2)}, {"scale": np.zeros(2)}),
        (None, 3),
    ],
    ids=str,
)
def test_extra_state_that_differs_is_named(ours, theirs) -> None:
    source = nn.Sequential(Extra(theirs))
    for given in (source, source.state_dict(), compiled(source)):
        message = refused(given, nn.Sequential(Extra(ours)))
        assert "start and the model have different extra state '0._extra_state'" in message


def test_extra_state_of_tensors_stays_and_has_to_be_equal() -> None:
    extra, same, other = Extra(torch.ones(2)), Extra(torch.ones(2)), Extra(torch.zeros(2))
    assert list(load_endpoint(same, extra, "start")) == ["weight", "bias", "_extra_state"]
    assert "different extra state '_extra_state'" in refused(other, extra)


def test_extra_state_that_the_model_has_not_is_named() -> None:
    state = Extra({"steps": 1}).state_dict()
    assert "start has extra state '_extra_state', the model has none" in refused(state, nn.Linear(2, 2))


def test_same_value() -> None:
    class Simple:
        def __init__(self, a: Any) -> None:
            self.a = a

    arrays = np.array([1.0, 2.0])
    assert same_value(arrays, arrays.copy())
    assert not same_value(arrays, arrays[:1])
    assert same_value(Simple([1]), Simple([1]))
    assert not same_value(Simple([1]), Simple([2]))
    assert not same_value(Simple(object()), Simple(object()))
    assert same_value(nn.Parameter(torch.ones(2)), torch.ones(2))
    assert not same_value(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_nothing_of_the_module_changes() -> None:
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_endpoint(Tied().double(), module, "start")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.head.weight is module.embed.weight
