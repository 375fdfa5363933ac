"""FlatParameters survives what users do to modules, or names what it cannot survive."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from llpf_fast.errors import LLPFError
from llpf_fast.flat import ALIGNMENT, FlatParameters
from llpf_fast.ops import SegmentFlag


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network() -> nn.Sequential:
    """A 4-d weight, buffers, one-element and odd-sized tensors."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7), nn.Linear(7, 1)
    )


def train(module: nn.Module) -> None:
    module(torch.randn(4, 3, 4, 4)).square().mean().backward()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.embed(tokens))


def values_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters(remove_duplicate=False)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k].to(left[k])) for k in left)


def check_aliased(flat: FlatParameters) -> None:
    """Address, order and values of every parameter; a write to either side shows on the other; padding is 0."""
    parameters = dict(flat.module.named_parameters(remove_duplicate=False))
    assert set(flat.table.names) | set(flat.aliases) == {n for n, p in parameters.items() if p.numel()}
    for alias, name in flat.aliases.items():
        assert parameters[alias] is parameters[name]
    inside = torch.zeros(flat.table.numel, dtype=torch.bool)
    before = flat.data.clone()
    ramp = torch.arange(flat.table.numel, device=flat.data.device).to(flat.data.dtype)
    for row in flat.table.rows:
        p = parameters[row.name]
        assert isinstance(p, nn.Parameter)
        assert row.offset % ALIGNMENT == 0
        assert row.length == p.numel()
        assert p.data_ptr() == flat.data.data_ptr() + row.offset * flat.data.element_size()
        assert (p.dtype, p.device) == (flat.data.dtype, flat.data.device)
        inside[row.offset : row.offset + row.length] = True
        flat.data[row.offset : row.offset + row.length] = ramp[row.offset : row.offset + row.length]
        assert torch.equal(p.detach().flatten().sort().values, ramp[row.offset : row.offset + row.length].sort().values)
    flat.data.copy_(before)
    assert flat.table.numel % ALIGNMENT == 0
    assert not flat.data[~inside].any()
    assert flat.table.segments.device == flat.data.device


def check_gradients(flat: FlatParameters, gradients: dict[str, Tensor | None]) -> None:
    views = flat.views(flat.grad)
    for name, expected in gradients.items():
        view = views[name]
        torch.testing.assert_close(view, torch.zeros_like(view) if expected is None else expected, rtol=0, atol=0)
        gradient = dict(flat.module.named_parameters())[name].grad
        assert gradient is not None
        assert gradient.data_ptr() == view.data_ptr()
        assert gradient.stride() == view.stride()
    assert torch.count_nonzero(flat.grad) == sum(torch.count_nonzero(view) for view in views.values())


# -- construction


def test_parameters_become_views_with_their_values_and_identity() -> None:
    module = network()
    before, objects = values_of(module), list(module.parameters())
    flat = FlatParameters(module)
    assert same(before, values_of(module))
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))
    assert flat.table.names == tuple(name for name, _ in module.named_parameters())
    assert all(row.flags == SegmentFlag.NONE for row in flat.table.rows)
    check_aliased(flat)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    flat = FlatParameters(network().to(dtype))
    assert flat.data.dtype == dtype
    check_aliased(flat)


def test_frozen_parameters_are_flagged_and_toggling_is_noticed() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    flat = FlatParameters(module)
    frozen = lambda: [row.name for row in flat.table.rows if row.flags == SegmentFlag.FROZEN]
    assert frozen() == ["0.weight"]
    assert int(flat.table.segments[0, 4]) == SegmentFlag.FROZEN
    module[0].weight.requires_grad_(True)
    module[4].requires_grad_(False)
    flat.ensure()
    assert frozen() == ["4.weight", "4.bias"]
    assert int(flat.table.segments[0, 4]) == 0
    check_aliased(flat)


def test_join_bias_groups_neighbours() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3))
            self.gain = nn.Parameter(torch.randn(3))
            self.weight = nn.Parameter(torch.randn(3, 2))
            self.inner = nn.LSTM(2, 3)
            self.last = nn.Linear(3, 3, bias=False)

    module = Odd()
    groups: dict[int, list[str]] = {}
    for row in FlatParameters(module, join_bias=True).table.rows:
        groups.setdefault(row.distance_group, []).append(row.name)
    assert list(groups.values()) == [
        ["gain"],
        ["weight", "bias"],
        ["inner.weight_ih_l0", "inner.bias_ih_l0"],
        ["inner.weight_hh_l0", "inner.bias_hh_l0"],
        ["last.weight"],
    ]
    alone = FlatParameters(module).table.rows
    assert len({row.distance_group for row in alone}) == len(alone)
    assert len({row.variance_group for row in alone}) == len(alone)


def test_tied_parameters_are_one_segment() -> None:
    flat = FlatParameters(Tied(), join_bias=True)
    assert flat.table.names == ("embed.weight", "lm_head.bias")
    assert flat.aliases == {"lm_head.weight": "embed.weight"}
    assert flat.table.rows[0].distance_group == flat.table.rows[1].distance_group
    check_aliased(flat)
    shared = nn.Linear(2, 2)
    assert FlatParameters(nn.Sequential(shared, shared)).aliases == {"1.weight": "0.weight", "1.bias": "0.bias"}


def test_parameters_without_elements_are_known_but_no_segment() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.empty = nn.Parameter(torch.zeros(0, 3))
    flat = FlatParameters(module)
    assert flat.table.names == ("0.weight", "0.bias")
    assert flat.state_dict()["empty"].shape == (0, 3)
    flat.load(flat.state_dict())


class IntegerWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


class EmptyOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(0))


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1).expand(4))


class Shared(nn.Module):
    """The classical mistake: a transposed weight shared through .data, as two Parameter objects."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 3)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = nn.Parameter(self.encode.weight.data.t())


class Renamed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self._register_state_dict_hook(lambda m, state, prefix, _: state.update(w=state.pop(prefix + "weight")))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nn.ReLU, ["no parameters"]),
        (EmptyOnly, ["no parameters"]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), ["'0.weight'", "float32", "'1.weight'"]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), ["'0.weight'", "'1.weight'", "meta"]),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), ["'weight'", "complex64"]),
        (IntegerWeight, ["'w'", "int64"]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), ["'1.weight'", "lazy"]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)), ["'1.running_mean'", "lazy"]),
        (Expanded, ["'w'", "expanded"]),
        (Shared, ["'encode.weight'", "'decode.weight'", "share memory"]),
        (Renamed, ["'weight'", "state_dict"]),
        (torch.inference_mode()(lambda: nn.Linear(2, 2)), ["'weight'", "inference_mode"]),
        (lambda: torch.zeros(3), ["Module", "Tensor"]),
    ],
)
def test_refused_by_name(make: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(LLPFError) as caught:
        FlatParameters(make())
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_parameters_that_share_a_storage_without_overlap_are_fine() -> None:
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False))
    wide = torch.randn(3, 4)
    module[0].weight.data, module[1].weight.data = wide[:, :2], wide[:, 2:]
    flat = FlatParameters(module)
    assert torch.equal(module[1].weight, wide[:, 2:])
    check_aliased(flat)


def test_flattened_and_moved_under_inference_mode() -> None:
    module = network()
    with torch.inference_mode():
        flat = FlatParameters(module)
        assert not flat.data.is_inference()
        flat.zero_grad()
        module.double()
        flat.ensure()
        state = flat.state_dict()
    assert not flat.data.is_inference()
    assert not state["0.weight"].is_inference()
    module.float()
    train(module)
    flat.ensure_gradients()
    assert flat.grad.any()
    check_aliased(flat)


# -- what users do to the module


def assign(module: nn.Module) -> None:
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


def swap_on_conversion(module: nn.Module) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def overwrite_on_conversion(module: nn.Module) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def reassign_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def new_parameter(module: nn.Module) -> None:
    module[4].weight = nn.Parameter(module[4].weight.detach().clone())


def new_layer(module: nn.Module) -> None:
    layer = nn.Linear(80, 7)
    layer.load_state_dict(module[4].state_dict())
    module[4] = layer


EVENTS: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda module: None,
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "double_and_back": lambda module: module.double().float(),
    "to_same": lambda module: module.to("cpu", torch.float32),
    "channels_last": lambda module: module.to(memory_format=torch.channels_last),
    "load_state_dict": lambda module: module.load_state_dict(copy.deepcopy(module.state_dict())),
    "assign": assign,
    "swap_on_conversion": swap_on_conversion,
    "overwrite_on_conversion": overwrite_on_conversion,
    "data": reassign_data,
    "new_parameter": new_parameter,
    "new_layer": new_layer,
    "share_memory": lambda module: module.share_memory(),
}


#: After these, [N] buffers made before do not fit any more.
NEW_VERSION = {"double", "bfloat16", "channels_last", "swap_on_conversion", "overwrite_on_conversion"}


@pytest.mark.parametrize("event", EVENTS)
def test_survives(event: str) -> None:
    module = network()
    flat = FlatParameters(module)
    if event != "swap_on_conversion":  # torch itself refuses to swap a parameter whose graph is alive
        train(module)
        flat.ensure_gradients()
    EVENTS[event](module)
    after = values_of(module)
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
    flat.ensure()
    assert same(after, values_of(module))
    check_aliased(flat)
    assert flat.version == (event in NEW_VERSION)
    flat.ensure_gradients()
    check_gradients(flat, gradients)
    table, data = flat.table, flat.data
    flat.ensure()
    assert flat.table is table
    assert flat.data is data


@pytest.mark.parametrize("event", ["assign", "data", "new_parameter", "load_state_dict"])
def test_a_repair_does_not_replace_the_buffer(event: str) -> None:
    module = network()
    flat = FlatParameters(module)
    data, table = flat.data, flat.table
    EVENTS[event](module)
    flat.ensure()
    assert flat.data is data
    assert flat.table is table


def test_swapped_memory_is_swapped_back() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    flat = FlatParameters(module)
    a, b = module[0].weight, module[1].weight
    a.data, b.data = b.data, a.data
    after = values_of(module)
    flat.ensure()
    assert same(after, values_of(module))
    check_aliased(flat)


def test_transposed_in_place_is_noticed() -> None:
    module = nn.Linear(3, 3)
    flat = FlatParameters(module)
    module.weight.data = module.weight.data.t()
    after = values_of(module)
    flat.ensure()
    assert same(after, values_of(module))
    assert torch.equal(flat.views(flat.data)["weight"], after["weight"])
    assert torch.equal(flat.state_dict()["weight"], after["weight"])


def test_to_meta_and_back() -> None:
    module = network()
    flat = FlatParameters(module)
    module.to("meta")
    flat.ensure()
    assert flat.data.is_meta
    assert flat.table.device.type == "meta"
    module.to_empty(device="cpu")
    flat.ensure()
    check_aliased(flat)
    assert FlatParameters(network().to("meta")).data.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_to_cuda_and_back() -> None:
    module = network()
    flat = FlatParameters(module)
    before = values_of(module)
    module.cuda()
    flat.ensure()
    assert flat.data.is_cuda
    check_aliased(flat)
    module.cpu()
    flat.ensure()
    assert same(before, values_of(module))
    check_aliased(flat)


def grow(module: nn.Module) -> None:
    module[5] = nn.Linear(7, 2)


def drop_bias(module: nn.Module) -> None:
    module[4].bias = None


def tie(module: nn.Module) -> None:
    module[1].weight = module[0].bias


def narrow(module: nn.Module) -> None:
    module[4].weight.data = module[4].weight.data[:5]


def share(module: nn.Module) -> None:
    module[1].weight.data = module[0].bias.data


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (grow, ["'5.weight'", "[1, 7]", "[2, 7]"]),
        (narrow, ["'4.weight'", "[7, 80]", "[5, 80]"]),
        (drop_bias, ["'4.bias'", "vanished"]),
        (lambda m: m.append(nn.Linear(1, 1)), ["'6.weight'", "'6.bias'", "appeared"]),
        (lambda m: m[4].double(), ["'0.weight'", "'4.weight'", "float64"]),
        (lambda m: parametrizations.weight_norm(m[4]), ["'4.weight'", "vanished"]),
        (tie, ["'0.bias'", "'1.weight'", "tied"]),
        (share, ["'0.bias'", "'1.weight'", "share memory"]),
    ],
)
def test_refused_later_by_name(break_it: Callable[[nn.Module], object], words: list[str]) -> None:
    module = network()
    flat = FlatParameters(module)
    before = flat.data.clone()
    break_it(module)
    for _ in range(2):
        with pytest.raises(LLPFError) as caught:
            flat.ensure()
        for word in words:
            assert word in str(caught.value)
    assert torch.equal(flat.data, before)


def test_cut_ties_are_restored_or_refused() -> None:
    module = Tied()
    flat = FlatParameters(module)
    state = copy.deepcopy(module.state_dict())
    module.load_state_dict(state, assign=True)
    assert module.lm_head.weight is not module.embed.weight
    flat.ensure()
    check_aliased(flat)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["lm_head.weight"][0] += 1
    module.load_state_dict(state, assign=True)
    with pytest.raises(LLPFError, match=r"'embed.weight' and 'lm_head.weight' were tied"):
        flat.ensure()


# -- memory order


def test_channels_last_is_aliased_and_converted() -> None:
    reference = network()
    last = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    flat, ordered = FlatParameters(reference), FlatParameters(last)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    assert not torch.equal(flat.data, ordered.data)
    check_aliased(ordered)
    state = ordered.state_dict()
    assert all(value.is_contiguous() for value in state.values())
    assert same(state, flat.state_dict())
    assert torch.equal(ordered.flatten(flat.state_dict()), ordered.data)
    assert torch.equal(flat.flatten(last.state_dict()), flat.data)
    ordered.data.mul_(2)
    flat.data.mul_(2)
    assert same(values_of(reference), values_of(last))
    train(last)
    ordered.ensure_gradients()
    check_gradients(ordered, {n: p.grad.clone() for n, p in last.named_parameters() if p.grad is not None})


# -- copies


def independent(flat: FlatParameters, other: FlatParameters) -> None:
    before = values_of(flat.module)
    assert same(before, values_of(other.module))
    check_aliased(other)
    check_aliased(flat)
    other.data.add_(1)
    other.data.zero_()
    assert same(before, values_of(flat.module))
    assert other.kinds == flat.kinds
    assert other.table.rows == flat.table.rows
    assert other.aliases == flat.aliases


def through_torch(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[object], object]] = {
    "deepcopy": copy.deepcopy,
    "torch": through_torch,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("make", [network, Tied, lambda: network().to(memory_format=torch.channels_last)])
def test_copies_are_independent(how: str, make: Callable[[], nn.Module]) -> None:
    flat = FlatParameters(make(), join_bias=True)
    flat.grad[: flat.table.rows[0].length] = 3.0
    flat.ensure_gradients()
    other = COPIES[how](flat)
    assert isinstance(other, FlatParameters)
    independent(flat, other)
    assert torch.equal(other.grad, flat.grad)
    module = COPIES[how](flat.module)
    assert isinstance(module, nn.Module)
    independent(flat, FlatParameters(module, join_bias=True))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_aliases_its_module_and_buffer(how: str) -> None:
    module = network()
    pair = COPIES[how]((module, FlatParameters(module)))
    assert isinstance(pair, tuple)
    assert pair[1].module is pair[0]


def test_torch_save_writes_the_buffer_once() -> None:
    module = network()
    flat, file = FlatParameters(module), io.BytesIO()
    torch.save(module.state_dict(), file)
    bare = io.BytesIO()
    torch.save(network().state_dict(), bare)
    assert len(file.getvalue()) < len(bare.getvalue()) + flat.data.nbytes


def test_released_parameters_have_separate_memory() -> None:
    module = network()
    flat = FlatParameters(module)
    train(module)
    flat.ensure_gradients()
    before, gradient = values_of(module), module[4].weight.grad.clone()
    flat.release()
    flat.data.zero_()
    flat._grad.zero_()
    assert same(before, values_of(module))
    assert torch.equal(module[4].weight.grad, gradient)
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == len(list(module.parameters()))
    with pytest.raises(LLPFError, match="released"):
        flat.ensure()
    check_aliased(FlatParameters(module))


# -- training


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd_foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "sgd_loop": lambda p: torch.optim.SGD(p, 0.1, foreach=False),
}


@pytest.mark.parametrize("event", ["nothing", "channels_last", "assign"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimisers_train_the_buffer(optimiser: str, event: str) -> None:
    reference, module = network(), network()
    module.load_state_dict(reference.state_dict())
    EVENTS[event](module)
    EVENTS[event](reference)
    flat = FlatParameters(module)
    optimisers = [OPTIMISERS[optimiser](m.parameters()) for m in (reference, module)]
    for _ in range(3):
        batch = torch.randn(4, 3, 4, 4)
        for m, o in zip((reference, module), optimisers, strict=True):
            o.zero_grad()
            m(batch).square().mean().backward()
            if m is module:
                flat.ensure_gradients()
                flat.ensure()
            o.step()
    assert same(values_of(reference), values_of(module))
    assert same(flat.views(flat.data), values_of(reference))
    check_aliased(flat)


def test_gradients_from_every_source() -> None:
    module = network()
    flat = FlatParameters(module)
    train(module)
    expected = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    assert flat.grad.shape == flat.data.shape
    check_gradients(flat, expected)

    train(module)  # accumulates in place
    twice = flat.grad.clone()
    flat.ensure_gradients()
    assert torch.equal(flat.grad, twice)
    assert not torch.equal(flat.views(twice)["4.weight"], expected["4.weight"])

    module.zero_grad()
    module[4](torch.randn(2, 80)).sum().backward()
    flat.ensure_gradients()
    expected = {n: p.grad.clone() if n.startswith("4.") else None for n, p in module.named_parameters()}
    check_gradients(flat, expected)

    flat.zero_grad()
    check_gradients(flat, dict.fromkeys(expected))
    buffer = flat.grad
    train(module)
    flat.ensure_gradients()
    assert flat.grad is buffer
    assert flat.grad.any()

    module.zero_grad()
    flat.zero_grad()
    check_gradients(flat, dict.fromkeys(expected))

    module[4].bias.grad.data = torch.ones(7)
    flat.ensure_gradients()
    check_gradients(flat, {**dict.fromkeys(expected), "4.bias": torch.ones(7)})


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_gradients_with_a_graph_lose_it() -> None:
    module = nn.Linear(3, 1)
    flat = FlatParameters(module)
    flat.zero_grad()
    module(torch.randn(2, 3)).square().sum().backward(create_graph=True)
    assert module.weight.grad.requires_grad
    expected = module.weight.grad.detach().clone()
    flat.ensure_gradients()
    assert not flat.grad.requires_grad
    assert torch.equal(flat.views(flat.grad)["weight"], expected)


def test_sparse_gradients_are_copied_in() -> None:
    module = nn.Embedding(5, 3, sparse=True)
    flat = FlatParameters(module)
    for _ in range(2):
        module.zero_grad()
        module(torch.tensor([1, 1, 3])).sum().backward()
        assert module.weight.grad.is_sparse
        flat.ensure_gradients()
        assert flat.views(flat.grad)["weight"].sum(1).tolist() == [0, 6, 0, 3, 0]


def test_a_frozen_parameter_leaves_the_gradient() -> None:
    module = network()
    flat = FlatParameters(module)
    train(module)
    flat.ensure_gradients()
    module[4].weight.requires_grad_(False)
    flat.ensure_gradients()
    assert not flat.views(flat.grad)["4.weight"].any()
    assert flat.views(flat.grad)["4.bias"].any()
    assert module[4].weight.grad is None
    module[4].weight.requires_grad_(True)
    train(module)
    expected = module[4].weight.grad.clone()
    flat.ensure_gradients()
    assert torch.equal(flat.views(flat.grad)["4.weight"], expected)


def test_gradients_follow_another_dtype() -> None:
    module = network()
    flat = FlatParameters(module)
    train(module)
    flat.ensure_gradients()
    expected = flat.grad.double()
    module.double()
    flat.ensure_gradients()
    assert flat.grad.dtype == torch.float64
    assert torch.equal(flat.grad, expected)


def test_compiled_module_uses_the_buffer() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    flat = FlatParameters(module)
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(5, 4)
    for _ in range(2):
        flat.zero_grad()
        compiled(x).square().sum().backward()
        flat.ensure_gradients()
        gradient = flat.grad.clone()
        flat.zero_grad()
        module(x).square().sum().backward()
        torch.testing.assert_close(gradient, flat.grad)
        assert gradient.any()
        flat.data.add_(gradient, alpha=-0.1)
        torch.testing.assert_close(compiled(x), module(x))
    check_aliased(flat)
    assert FlatParameters(compiled).table.numel == flat.table.numel


def test_parametrizations_flatten_the_originals() -> None:
    module = parametrizations.weight_norm(nn.Linear(4, 3))
    flat = FlatParameters(module)
    assert set(flat.table.names) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    before = module.weight.detach().clone()
    flat.views(flat.data)["parametrizations.weight.original0"].mul_(2)
    torch.testing.assert_close(module.weight.detach(), 2 * before)
    assert same(flat.state_dict(), dict(module.state_dict()))
    check_aliased(flat)


# -- state dicts


def test_state_dict_equals_the_modules_and_is_contiguous_and_independent() -> None:
    module = network()
    flat = FlatParameters(module)
    state, expected = flat.state_dict(), module.state_dict()
    assert list(state) == list(expected)
    assert same(state, dict(expected))
    other = flat.state_dict(flat.data * 2)
    assert torch.equal(other["4.weight"], 2 * expected["4.weight"])
    assert torch.equal(other["1.running_var"], expected["1.running_var"])
    flat.data.zero_()
    assert state["4.weight"].any()
    assert len({v.untyped_storage().data_ptr() for v in state.values()}) == len(state)
    network().load_state_dict(other)


def test_state_dict_of_tied_names_and_back() -> None:
    flat = FlatParameters(Tied())
    state = flat.state_dict()
    assert list(state) == ["embed.weight", "lm_head.weight", "lm_head.bias"]
    assert torch.equal(state["embed.weight"], state["lm_head.weight"])
    assert state["embed.weight"].data_ptr() != state["lm_head.weight"].data_ptr()
    assert torch.equal(flat.flatten(state), flat.data)
    del state["embed.weight"]
    assert torch.equal(flat.flatten(state), flat.data)
    state["embed.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(LLPFError, match=r"tied parameters 'embed.weight' and 'lm_head.weight'"):
        flat.flatten(state)


def test_flatten_pads_with_zeros_and_converts() -> None:
    flat = FlatParameters(network())
    state = {name: value.double() for name, value in flat.state_dict().items() if "running" not in name}
    values = flat.flatten(state)
    assert values.dtype == torch.float32
    assert torch.equal(values, flat.data)
    assert values.data_ptr() != flat.data.data_ptr()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("4.weight"), ["missing '4.weight' [7, 80]"]),
        (lambda s: s.update(extra=torch.zeros(2)), ["unexpected 'extra' [2]"]),
        (lambda s: s.update({"0.bias": torch.zeros(6)}), ["'0.bias' is [6], not [5]"]),
        (lambda s: s.update({"0.bias": [1.0]}), ["'0.bias' is list"]),
        (lambda s: s.update({"0.bias": torch.zeros(5, dtype=torch.complex64)}), ["'0.bias' is torch.complex64"]),
        (lambda s: s.clear(), ["missing '0.weight'", "4 more"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], words: list[str]
) -> None:
    flat = FlatParameters(network())
    state, before = flat.state_dict(), flat.data.clone()
    change(state)
    for use in (flat.flatten, flat.load):
        with pytest.raises(LLPFError) as caught:
            use(state)
        for word in words:
            assert word in str(caught.value)
    assert torch.equal(flat.data, before)


def test_load_writes_parameters_and_buffers_or_nothing() -> None:
    flat, other = FlatParameters(network()), network()
    other[1].running_mean.normal_()
    pointer = flat.data.data_ptr()
    state = dict(other.state_dict())
    del state["1.running_var"]
    before = flat.data.clone()
    with pytest.raises(LLPFError, match=r"missing buffer '1.running_var' \[5\]"):
        flat.load(state)
    assert torch.equal(flat.data, before)
    flat.load(other.state_dict())
    assert same(dict(flat.module.state_dict()), dict(other.state_dict()))
    assert flat.data.data_ptr() == pointer
    check_aliased(flat)


def test_extra_state_is_exchanged() -> None:
    class WithExtra(nn.Linear):
        extra = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"extra": self.extra}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.extra = state["extra"]

    source, target = WithExtra(2, 2), WithExtra(2, 2)
    source.extra = 7
    flat = FlatParameters(target)
    flat.load(source.state_dict())
    assert target.extra == 7
    assert list(flat.state_dict()) == ["weight", "bias"]
    flat.load(flat.state_dict())
    assert target.extra == 7


def test_views_do_not_copy_and_refuse_other_sizes() -> None:
    flat = FlatParameters(network())
    stack = torch.zeros(3, flat.table.numel, dtype=torch.float64)
    flat.views(stack[1])["0.bias"].fill_(1)
    assert stack[1].sum() == 5
    assert stack[0].sum() == stack[2].sum() == 0
    values = flat.data.clone().requires_grad_()
    x = torch.randn(2, 3, 4, 4)
    flat.module.eval()
    torch.func.functional_call(flat.module, flat.views(values), (x,)).sum().backward()
    assert values.grad is not None
    assert values.grad.any()
    for wrong in (torch.zeros(flat.table.numel - 16), torch.zeros(2 * flat.table.numel)[::2]):
        with pytest.raises(LLPFError, match=f"contiguous buffer of {flat.table.numel} elements"):
            flat.views(wrong)
