"""The order of layers is that of the computation, not that of their declaration."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from llpf_fast.errors import LLPFError
from llpf_fast.flat import FlatParameters, data_flow_order


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def order(module: nn.Module, *inputs: Tensor) -> list[list[str]]:
    flow = data_flow_order(module, lambda: module(*inputs))
    assert not flow.unused
    assert sorted(chain.from_iterable(flow.groups)) == sorted(name for name, _ in module.named_parameters())
    return [list(group) for group in flow.groups]


def test_use_decides_and_not_the_order_of_declaration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.norm = nn.BatchNorm1d(4)
            self.first = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)))

    assert order(Backwards(), torch.randn(5, 3)) == [
        ["first.weight", "first.bias"],
        ["norm.weight", "norm.bias"],
        ["last.weight", "last.bias"],
    ]


def test_a_shortcut_precedes_what_follows_the_join() -> None:
    from torchvision.models.resnet import BasicBlock

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(4, 2, 1)
            shortcut = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.BatchNorm2d(4))
            self.block = BasicBlock(3, 4, stride=2, downsample=shortcut)
            self.next = BasicBlock(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.next(self.block(x)))

    layers = [group[0].removesuffix(".weight") for group in order(Net(), torch.randn(1, 3, 8, 8))]
    assert layers == [
        *("block.conv1", "block.bn1", "block.conv2", "block.bn2", "block.downsample.0", "block.downsample.1"),
        *("next.conv1", "next.bn1", "next.conv2", "next.bn2", "head"),
    ]


def test_tied_weights_belong_to_their_first_use() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 6)
            self.middle = nn.Linear(4, 4)
            self.embed = nn.Embedding(6, 4)
            self.embed.weight = self.head.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.middle(self.embed(tokens)))

    module = Tied()
    # One layer by its first name: the bias comes along.
    assert order(module, torch.tensor([1, 2])) == [["head.weight", "head.bias"], ["middle.weight", "middle.bias"]]
    assert set(FlatParameters(module).table.names) == {n for group in order(module, torch.tensor([1])) for n in group}


@pytest.mark.parametrize("fast_path", [True, False])
def test_encoder_layers_and_the_fast_path(fast_path: bool) -> None:
    module = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        groups = order(module, torch.randn(2, 3, 6))
        assert torch.backends.mha.get_fastpath_enabled() is fast_path
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert groups == [
        ["self_attn.in_proj_weight", "self_attn.in_proj_bias"],
        ["self_attn.out_proj.weight", "self_attn.out_proj.bias"],
        ["norm1.weight", "norm1.bias"],
        ["linear1.weight", "linear1.bias"],
        ["linear2.weight", "linear2.bias"],
        ["norm2.weight", "norm2.bias"],
    ]


def test_attention_with_separate_projections() -> None:
    module = nn.MultiheadAttention(4, 2, kdim=6, vdim=5, add_bias_kv=True)
    assert order(module, torch.randn(3, 1, 4), torch.randn(3, 1, 6), torch.randn(3, 1, 5)) == [
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"],
        ["out_proj.weight", "out_proj.bias"],
    ]


def test_parametrized_tensors_belong_to_their_layer() -> None:
    module = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(4, 2))
    )
    assert order(module, torch.randn(5, 3)) == [
        ["0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
        ["2.bias", "2.parametrizations.weight.original"],
    ]

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.between = parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.between(x @ self.one.weight) + self.one.bias

    assert order(Apart(), torch.randn(3, 2)) == [
        ["one.bias", "one.parametrizations.weight.original"],
        ["between.weight", "between.bias"],
    ]


def test_parameters_inside_lists() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 2)
            self.rows = nn.ParameterList([torch.zeros(2), torch.ones(2)])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x @ torch.cat(list(self.rows)).reshape(2, 2))

    assert order(Stacked(), torch.randn(3, 2)) == [["rows.0", "rows.1"], ["last.weight", "last.bias"]]


class Vision(nn.Module):
    """Direct parameters of a container: at the input, between children, and reached by .data and .item() only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.ones(4))
        self.patch = nn.Linear(3, 4)
        self.body = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(torch.zeros(1, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).to(self.head.weight.dtype)
        assert self.head.weight.shape[1] == x.shape[-1]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position.data
        x = self.body(x * self.weight) + self.bias
        return self.head(x * self.scale.item())


def test_direct_parameters_of_a_container() -> None:
    assert order(Vision(), torch.randn(2, 5, 3)) == [
        ["patch.weight", "patch.bias"],
        ["bias", "weight", "token", "position"],
        ["body.weight", "body.bias"],
        ["scale"],
        ["head.weight", "head.bias"],
    ]


def test_parameters_of_a_leaf_are_one_group() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.zeros(2))
            self.w = nn.Parameter(torch.zeros(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.between = nn.Linear(2, 2)
            self.one = Functional()

        def forward(self, x: Tensor) -> Tensor:
            return self.between(x * self.one.w) + self.one.b

    assert order(Net(), torch.randn(3, 2)) == [["one.b", "one.w"], ["between.weight", "between.bias"]]
    lstm = nn.LSTM(2, 3, num_layers=2)
    assert order(nn.Sequential(lstm), torch.randn(4, 1, 2)) == [[f"0.{name}" for name, _ in lstm.named_parameters()]]


def test_unused_parameters_are_last_and_reported() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(3, 1)
            self.part = nn.Linear(3, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            extra = self.aux(batch["x"]) if self.training else 0
            return batch["x"] @ self.part.weight.t() + extra

    module = Auxiliary()
    flow = data_flow_order(module, lambda: module({"x": torch.randn(2, 3)}))
    assert flow.unused == ("aux.weight", "aux.bias", "part.bias")
    assert flow.groups == (("part.weight",), flow.unused)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_module_runs_as_written(called_before: bool) -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    module.compile(backend=backend)
    if called_before:
        module(torch.randn(2, 3))
    assert order(module, torch.randn(2, 3)) == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    assert len(compiled) == called_before
    module(torch.randn(2, 3))
    assert len(compiled) == 1


def test_no_compiler_is_imported() -> None:
    script = (
        "import sys, torch; from llpf_fast.flat import data_flow_order; m = torch.nn.Linear(2, 2); "
        "data_flow_order(m, lambda: m(torch.ones(1, 2))); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class Restless(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("table", torch.zeros(2))
        self.norm = nn.BatchNorm1d(3, track_running_stats=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 3)

    def train(self, mode: bool = True) -> Restless:
        raise AssertionError("a user's train() may do anything")

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.replaced = self.replaced + torch.rand(2)
        if len(self.table) < len(x):
            self.table = torch.arange(float(len(x)))
        return self.drop(self.norm(self.fc(x)))


def test_flags_buffers_gradients_and_random_numbers_are_left_alone() -> None:
    module = Restless()
    module.norm.training = False
    module.fc.weight.grad = torch.ones(3, 3)
    before, replaced = copy.deepcopy(dict(module.named_buffers())), module.replaced
    state = torch.get_rng_state()
    modes: list[bool] = []

    def forward() -> None:
        modes.extend(each.training for each in module.modules())
        assert not torch.is_grad_enabled()
        module(torch.randn(7, 3))

    data_flow_order(module, forward)
    assert not any(modes)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert [each.training for each in module.modules()] == [True, False, True, True]
    after = dict(module.named_buffers())
    assert len(after.pop("table")) == 7
    del before["table"]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert module.replaced is replaced
    assert torch.equal(module.fc.weight.grad, torch.ones(3, 3))


def test_a_failing_pass_is_named_and_everything_is_restored() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[0].register_forward_pre_hook(lambda norm, _: setattr(norm, "running_mean", norm.running_mean + 1))
    with pytest.raises(LLPFError, match=r"forward pass of Sequential.* failed with RuntimeError: .*mat2") as caught:
        data_flow_order(module, lambda: module[1](module[0](torch.randn(2, 3))[:, :2]))
    assert "\n" not in str(caught.value)
    assert module.training
    assert torch.equal(module[0].running_mean, torch.zeros(3))


def test_a_pass_of_something_else_is_refused() -> None:
    module = nn.Linear(2, 2)
    other = copy.deepcopy(module)
    with pytest.raises(LLPFError, match="used no parameter of Linear"):
        data_flow_order(module, lambda: other(torch.randn(1, 2)))


def test_a_flattened_module() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    FlatParameters(module)
    assert order(module, torch.randn(1, 3)) == [["0.weight", "0.bias"], ["1.weight", "1.bias"]]
