"""Digest, encoding, finiteness and architecture of state dicts."""

from __future__ import annotations

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path import check_finite, compare_architectures, state_digest
from llpf_fast.path.state import decode_state, encode_state, shapes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
DTYPES += [torch.complex64, torch.complex128, torch.complex32, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4)], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype, shape):
    state = {"a": (torch.randn(shape) * 3).to(dtype)}
    back = decode_state(encode_state(state), "file")
    assert back["a"].dtype == dtype
    assert back["a"].shape == torch.Size(shape)
    assert shapes(encode_state(state), "file") == {"a": list(shape)}
    assert state_digest(back) == state_digest(state)


def test_equal_states_give_equal_bytes_whatever_their_order_and_strides(make_state):
    state = make_state(1)
    reordered = {name: state[name].clone() for name in reversed(state)}
    strided = {**state, "conv.weight": state["conv.weight"].to(memory_format=torch.channels_last)}
    flat = torch.cat([state["conv.weight"].flatten(), state["conv.bias"]])
    views = {**state, "conv.weight": flat[:150].view(3, 2, 5, 5), "conv.bias": flat[150:]}
    for other in (reordered, strided, views):
        assert encode_state(other) == encode_state(state)
        assert state_digest(other) == state_digest(state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_dtype_that_no_file_holds_is_named():
    with pytest.raises(LLPFError, match=r"tensor 'b' is torch.qint8, which no safetensors file holds"):
        encode_state({"a": torch.ones(2), "b": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)})


def test_tied_tensors_are_written_twice():
    weight = torch.randn(4)
    back = decode_state(encode_state({"a": weight, "b": weight}), "file")
    assert torch.equal(back["a"], back["b"])


def test_digest_sees_every_difference(make_state):
    state = make_state(1)
    weight = state["conv.weight"]
    one_bit = weight.clone()
    one_bit.view(torch.int32).view(-1)[149] ^= 1
    others = [
        {**state, "conv.weight": one_bit},
        {**state, "conv.weight": weight.reshape(3, 2, 25)},
        {**state, "conv.weight": weight.view(torch.int32)},
        {**state, "norm.num_batches_tracked": torch.tensor(2)},
        {name: tensor for name, tensor in state.items() if name != "conv.bias"},
        {name.replace("bias", "bjas"): tensor for name, tensor in state.items()},
        {**state, "conv.bias": state["norm.running_mean"], "norm.running_mean": state["conv.bias"]},
    ]
    digests = {state_digest(other) for other in [state, *others]}
    assert len(digests) == len(others) + 1
    assert state_digest({"a": torch.tensor([0.0])}) != state_digest({"a": torch.tensor([-0.0])})


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "1 NaN"), (float("-inf"), "1 infinite")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused_by_file_and_tensor(make_state, value, text, dtype):
    state = make_state(1)
    state["conv.bias"] = torch.tensor([1.0, value, 2.0], dtype=dtype)
    with pytest.raises(LLPFError, match=rf"^start\.pt: tensor 'conv\.bias' has {text} of 3 values"):
        check_finite(state, "start.pt")


def test_nan_in_an_eight_bit_float_is_seen():
    with pytest.raises(LLPFError, match="1 NaN"):
        check_finite({"a": torch.tensor([float("nan"), 1.0]).to(torch.float8_e4m3fn)}, "f")


def test_finite_states_pass(make_state):
    check_finite({**make_state(1), "empty": torch.zeros(0), "largest": torch.tensor(3.4e38)}, "f")


def test_different_architectures_are_listed():
    a = {"conv1.weight": torch.zeros(6, 1, 5, 5), "fc.bias": torch.zeros(10), "same": torch.zeros(2)}
    b = {"conv1.weight": torch.zeros(16, 3, 3, 3), "same": torch.zeros(2), "new": torch.zeros(())}
    with pytest.raises(LLPFError) as caught:
        compare_architectures(a, b, "start", "destination")
    assert str(caught.value) == (
        "start and destination are different architectures: start has conv1.weight [6,1,5,5], destination has "
        "[16,3,3,3]; start has fc.bias [10], destination has none; start has new none, destination has []"
    )
    many = {f"w{i}": torch.zeros(1) for i in range(10)}
    with pytest.raises(LLPFError, match=r"and 7 more of 10$"):
        compare_architectures(many, {}, "a", "b")


def test_one_architecture_in_two_orders_and_dtypes_passes(make_state):
    state = make_state(1)
    compare_architectures(state, {name: state[name].double() for name in reversed(state)}, "a", "b")


def test_entries_that_are_no_tensors_are_no_architecture(make_state):
    state = make_state(1)
    compare_architectures({**state, "_extra_state": b"a"}, {**state, "norm._extra_state": None}, "start", "destination")
    with pytest.raises(LLPFError, match=r"start has _extra_state \[2\], destination has none"):
        compare_architectures({**state, "_extra_state": torch.ones(2)}, state, "start", "destination")
