"""Which buffers are statistics, which are fixed, and which no straight line connects."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.flat import FlatParameters, check_buffers, statistics, ties
from llpf_fast.flat.buffers import fixed_buffers
from llpf_fast.flat.tensors import same_bits
from llpf_fast.path import check_finite

INF, NAN = math.inf, math.nan


class Norm(nn.BatchNorm1d):
    """A user's class, derived from torch's."""


class Named(nn.Module):
    """Not a normalization, though its buffer has the name of one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.inst = nn.Linear(3, 3), Norm(3), nn.InstanceNorm1d(3, track_running_stats=True)
        self.sync, self.own, self.same = nn.SyncBatchNorm(3), Named(), nn.BatchNorm1d(3, track_running_stats=False)
        self.again = self.norm
        self.register_buffer("mask", torch.tensor([0.0, -INF, NAN]))
        self.register_buffer("index", torch.tensor([0, 1, 2]))
        self.register_buffer("select", torch.tensor([True, False]))
        self.register_buffer("phase", torch.tensor([1 + 2j, complex(INF, NAN)]))


def endpoints() -> tuple[dict[str, Tensor], dict[str, Tensor], Net]:
    net = Net()
    one = {name: value.clone() for name, value in net.state_dict().items()}
    two = {name: value.clone() for name, value in net.state_dict().items()}
    return one, two, net


def test_statistics_are_recognised_by_the_type_of_the_layer() -> None:
    three = ("running_mean", "running_var", "num_batches_tracked")
    expected = {f"{layer}.{name}" for layer in ("norm", "again", "inst", "sync") for name in three}
    assert statistics(Net()) == expected
    assert set(fixed_buffers(Net())) == {"own.running_mean", "mask", "index", "select", "phase"}


@pytest.mark.filterwarnings("error")
def test_statistics_may_differ_and_equal_buffers_may_have_any_values() -> None:
    one, two, net = endpoints()
    two["norm.running_mean"] += 1
    two["norm.num_batches_tracked"] += 5
    two["layer.weight"] += 1
    check_buffers(one, two, net)
    check_buffers(one, None, net)
    check_finite(one, "start", net)


def test_only_parameters_and_statistics_must_be_finite() -> None:
    one, _, net = endpoints()
    with pytest.raises(LLPFError, match=r"start: tensor 'mask' has 2 NaN or infinite of 3"):
        check_finite(one, "start")
    for name in ("layer.bias", "norm.running_var", "again.running_mean", "inst.running_mean"):
        one, _, net = endpoints()
        one[name][0] = NAN
        with pytest.raises(LLPFError, match=rf"start: tensor '{name}' has 1 NaN of 3"):
            check_finite(one, "start", net)


@pytest.mark.parametrize(("name", "value"), [("mask", 0.5), ("own.running_mean", 1.0), ("phase", 2j)])
def test_floating_buffers_that_differ_are_named_in_one_warning(name: str, value: complex) -> None:
    one, two, net = endpoints()
    two[name][0] = value
    with pytest.warns(UserWarning, match="interpolated on the path's last segment: ") as caught:
        check_buffers(one, two, net)
    assert len(caught) == 1
    assert str(caught[0].message).endswith(f": {name!r}")


@pytest.mark.parametrize("name", ["index", "select"])
def test_integers_and_booleans_that_differ_are_refused(name: str) -> None:
    one, two, net = endpoints()
    two[name][1] = 1 - one[name][1].long()
    if name == "index":
        two[name][1] = 7
    kind = {"index": "int64", "select": "bool"}[name]
    with pytest.raises(
        LLPFError, match=rf"buffer '{name}' \({kind}\) differs between start and destination.*give both"
    ):
        check_buffers(one, two, net)


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [("mask", 1, INF), ("mask", 1, 0.0), ("mask", 0, -INF), ("mask", 2, 1.0), ("phase", 1, complex(INF, 0))],
)
def test_values_that_are_not_finite_have_to_be_the_same(name: str, position: int, value: complex) -> None:
    one, two, net = endpoints()
    two[name][position] = value
    with pytest.raises(LLPFError, match=rf"buffer '{name}' has NaN or infinite values that differ"):
        check_buffers(one, two, net)


def test_many_that_differ_are_counted() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(6):
                self.register_buffer(f"b{i}", torch.zeros(2))

    one, two = Many().state_dict(), {name: value + 1 for name, value in Many().state_dict().items()}
    with pytest.warns(UserWarning, match="'b0', 'b1', 'b2', 'b3' and 2 more$"):
        check_buffers(one, two, Many())


def test_same_bits() -> None:
    zero, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    assert same_bits(zero, zero.clone())
    assert not same_bits(zero, minus)
    assert same_bits(torch.tensor(NAN), torch.tensor(NAN))
    assert not same_bits(zero, zero.double())
    assert not same_bits(zero, torch.zeros(()))
    assert same_bits(torch.zeros(0), torch.zeros(0))
    assert same_bits(torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]))
    assert same_bits(torch.eye(3)[:, 1], torch.tensor([0.0, 1.0, 0.0]))


def test_ties_are_names_of_one_tensor() -> None:
    net = Net()
    net.layer.bias = net.norm.bias
    net.extra = nn.Parameter(torch.randn(3))
    net.other = nn.Parameter(net.extra.detach().clone())
    groups = {frozenset(group) for group in ties(net)}
    names = ("weight", "running_mean", "running_var", "num_batches_tracked")
    assert groups == {
        frozenset({"layer.bias", "norm.bias", "again.bias"}),
        *(frozenset({f"norm.{name}", f"again.{name}"}) for name in names),
    }
    assert ties(nn.Linear(2, 2)) == []


def test_a_buffer_refuses_values_that_its_dtype_cannot_represent() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    flat = FlatParameters(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat.load({**state, "0.num_batches_tracked": torch.tensor(7.0)})
        flat.load({**state, "0.running_mean": torch.full((2,), 0.1, dtype=torch.float64)})
        assert int(net[0].num_batches_tracked) == 0
        assert float(net[0].running_mean[0]) == float(torch.tensor(0.1))
        with pytest.raises(
            LLPFError, match=r"buffer '0.num_batches_tracked' is torch.float32, with values that torch.i"
        ):
            flat.load({**state, "0.num_batches_tracked": torch.tensor(7.5)})
        with pytest.raises(
            LLPFError, match=r"buffer '0.running_mean' is torch.complex64, with values that torch.float32"
        ):
            flat.load({**state, "0.running_mean": torch.zeros(2, dtype=torch.complex64)})
