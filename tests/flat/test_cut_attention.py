"""Stacked attention projections are cut into row ranges in the table only."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from llpf_fast import ops
from llpf_fast.errors import LLPFError
from llpf_fast.flat import FlatParameters, LayerKind, SegmentTable
from llpf_fast.ops import SegmentFlag
from llpf_fast.ops.tick import tick_eager

NAMES = ("query", "key", "value")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Attention(nn.Module):
    """Odd sizes: no piece but the first is aligned. Key and value are one separate stack."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(5, 7)
        self.to_kv = nn.Linear(5, 14)
        self.to_out = nn.Linear(7, 5)


def network() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(5), nn.MultiheadAttention(5, 1), Attention(), nn.Linear(5, 2))


def rows_of(flat: FlatParameters, name: str) -> list[tuple[str, int, int]]:
    rows = zip(flat.table.rows, flat.parameter_names, strict=True)
    return [(row.name, row.offset, row.length) for row, parameter in rows if parameter == name]


def test_pieces_are_consecutive_in_their_parameter() -> None:
    module = network()
    flat = FlatParameters(module, cut_attention=True)
    weight, bias = "1.in_proj_weight", "1.in_proj_bias"
    at = flat.table.rows[flat.table.names.index(f"{weight}[query]")].offset
    assert rows_of(flat, weight) == [(f"{weight}[{name}]", at + 25 * i, 25) for i, name in enumerate(NAMES)]
    assert [length for _, _, length in rows_of(flat, bias)] == [5, 5, 5]
    assert [name for name, _, _ in rows_of(flat, "2.to_kv.weight")] == ["2.to_kv.weight[key]", "2.to_kv.weight[value]"]
    for i, name in enumerate(NAMES):
        row = flat.table.rows[flat.table.names.index(f"{weight}[{name}]")]
        piece = flat.data[row.offset : row.offset + row.length]
        assert torch.equal(piece, module[1].in_proj_weight[5 * i : 5 * i + 5].flatten())
        assert piece.data_ptr() == module[1].in_proj_weight[5 * i].data_ptr()
    assert FlatParameters(copy.deepcopy(module)).table.numel == flat.table.numel


def test_kinds_and_groups_of_the_pieces() -> None:
    flat = FlatParameters(network(), cut_attention=True, join_bias=True)
    roles = {
        row.name: (kind.value, bias, row.distance_group, row.variance_group)
        for row, kind, bias in zip(flat.table.rows, flat.kinds, flat.is_bias, strict=True)
    }
    weight = [roles[f"1.in_proj_weight[{name}]"] for name in NAMES]
    bias = [roles[f"1.in_proj_bias[{name}]"] for name in NAMES]
    assert [piece[:2] for piece in weight + bias] == [(n, False) for n in NAMES] + [(n, True) for n in NAMES]
    assert len({piece[2] for piece in weight + bias}) == 1
    assert len({piece[3] for piece in weight}) == len({piece[3] for piece in bias}) == 1
    assert weight[0][3] != bias[0][3]
    assert roles["2.to_q.bias"][:2] == ("query", True)
    assert roles["2.to_kv.weight[value]"][:2] == ("value", False)
    assert roles["1.out_proj.bias"][:2] == ("bias", True)
    assert len({group for *_, group in roles.values()}) == len(set(flat.parameter_names))


def test_without_the_option_nothing_is_cut() -> None:
    flat = FlatParameters(network())
    assert flat.table.names == flat.parameter_names == tuple(name for name, _ in flat.module.named_parameters())
    kinds = dict(zip(flat.table.names, flat.kinds, strict=True))
    assert kinds["1.in_proj_weight"] is kinds["2.to_kv.bias"] is LayerKind.FUSED_ATTENTION


def test_exchange_is_by_whole_parameters() -> None:
    module, other = network(), network()
    flat = FlatParameters(module, cut_attention=True)
    parameters = dict(module.named_parameters())
    views = flat.views(flat.data)
    assert views.keys() == parameters.keys()
    assert all(torch.equal(view, parameters[name]) for name, view in views.items())
    target = flat.flatten(other.state_dict())
    state = flat.state_dict(target)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    flat.load(other.state_dict())
    assert torch.equal(flat.data, target)
    assert torch.equal(module[1].in_proj_weight, other[1].in_proj_weight)
    with pytest.raises(LLPFError, match=r"missing '1.in_proj_weight' \[15, 5\]"):
        flat.flatten({name: value for name, value in state.items() if name != "1.in_proj_weight"})


def test_all_pieces_follow_requires_grad_dtype_and_assignment() -> None:
    module = network()
    flat = FlatParameters(module, cut_attention=True)
    names = flat.table.names
    module[1].in_proj_weight.requires_grad_(False)
    module[3].bias.requires_grad_(False)
    module.double()
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}, assign=True)
    flat.ensure()
    assert flat.data.dtype == torch.float64
    assert flat.table.names == names
    frozen = [row.name for row in flat.table.rows if row.flags & SegmentFlag.FROZEN]
    assert frozen == [f"1.in_proj_weight[{name}]" for name in NAMES] + ["3.bias"]
    row = flat.table.rows[names.index("1.in_proj_weight[value]")]
    assert module[1].in_proj_weight[10].data_ptr() == flat.data[row.offset].data_ptr()
    module[1].in_proj_bias.grad = torch.ones(15, dtype=torch.float64)
    flat.ensure_gradients()
    assert float(flat.grad.sum()) == 15


def by_torch_save(flat: FlatParameters) -> FlatParameters:
    file = io.BytesIO()
    torch.save(flat, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda flat: pickle.loads(pickle.dumps(flat)), by_torch_save], ids=["copy", "pickle", "save"]
)
def test_copies_are_cut_alike(how: Callable[[FlatParameters], FlatParameters]) -> None:
    flat = FlatParameters(network(), cut_attention=True, join_bias=True)
    again = how(flat)
    assert again.table == flat.table
    assert torch.equal(again.data, flat.data)
    for attribute in ("kinds", "is_bias", "is_layer_norm", "parameter_names"):
        assert getattr(again, attribute) == getattr(flat, attribute)


def test_tied_stacks_are_cut_once() -> None:
    module = nn.Sequential(nn.MultiheadAttention(5, 1), nn.MultiheadAttention(5, 1))
    module[1].in_proj_weight = module[0].in_proj_weight
    flat = FlatParameters(module, cut_attention=True)
    assert flat.aliases == {"1.in_proj_weight": "0.in_proj_weight"}
    assert sum(name.endswith("weight[key]") for name in flat.table.names) == 1


def tick(
    run: Callable[..., None], table: SegmentTable, p: Tensor, d: Tensor | None, destination: int, target: float = 0.7
) -> Tensor:
    x = p.clone()
    variance = torch.full((len(table),), target, dtype=torch.float64)
    step = torch.tensor([0.01, 0.1], dtype=torch.float64)
    rule = {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
    run(
        *(x, d, table.segments, table.chunks, variance, step, None, None, None, None, table.scratch()),
        destination=destination,
        **rule,
    )
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("destination", range(4))
@pytest.mark.parametrize(
    "run", [tick_eager, torch.ops.llpf_fast.tick_.default], ids=["eager", "chosen for the processor"]
)
def test_a_tick_of_the_pieces_is_a_tick_of_the_whole(
    run: Callable[..., None], destination: int, dtype: torch.dtype
) -> None:
    module = network().to(dtype)
    whole = FlatParameters(copy.deepcopy(module), chunk=16)
    cut = FlatParameters(module, cut_attention=True, chunk=16)
    p = torch.zeros_like(cut.data)
    for row in whole.table.rows:
        p[row.offset : row.offset + row.length].normal_()
    d = torch.randn_like(p) if destination == ops.Destination.POINT else None
    want, got = (tick(run, flat.table, p, d, destination) for flat in (whole, cut))
    # Both are one rounding to the storage type away from the same float64 map, whose sums differ in order only.
    bound = max(torch.finfo(dtype).eps, 64 * torch.finfo(torch.float64).eps)
    assert float(((got - want).abs() / want.abs().clamp(min=1)).max()) <= 2 * bound
    assert not torch.equal(want, p)

    flags = [
        SegmentFlag.MASKED if kind in (LayerKind.QUERY, LayerKind.KEY) and not bias else SegmentFlag.NONE
        for kind, bias in zip(cut.kinds, cut.is_bias, strict=True)
    ]
    ticked = tick(run, cut.table.with_flags(flags), p, d, destination)
    for row, flag in zip(cut.table.rows, flags, strict=True):
        part = slice(row.offset, row.offset + row.length)
        assert torch.equal(ticked[part], p[part]) == (flag is SegmentFlag.MASKED), row.name


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1)
        self.attention.in_proj_weight = nn.Parameter(torch.randn(5, 15).t())


def scalar_gain() -> nn.Module:
    module = nn.Sequential(Attention())
    parametrizations.weight_norm(module[0].to_kv, dim=None)
    return module


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Transposed, r"'attention.in_proj_weight' \[15, 5\] \(strides \[1, 15\]\) .* into query and key and value"),
        (scalar_gain, r"'0.to_kv.parametrizations.weight.original0' \[\] .* into key and value"),
    ],
)
def test_tensors_that_rows_cannot_cut_are_refused_by_name(make: Callable[[], nn.Module], says: str) -> None:
    module = make()
    before = [(p.data_ptr(), p.stride()) for p in module.parameters()]
    with pytest.raises(LLPFError, match=says) as caught:
        FlatParameters(module, cut_attention=True)
    assert "\n" not in str(caught.value)
    assert [(p.data_ptr(), p.stride()) for p in module.parameters()] == before
    FlatParameters(module)


def test_a_memory_order_that_changes_later_is_refused_and_nothing_changed() -> None:
    module = network()
    flat = FlatParameters(module, cut_attention=True)
    values = module[1].in_proj_weight.detach().clone()
    module[1].in_proj_weight.data = values.t().contiguous().t()
    before = flat.data.clone()
    with pytest.raises(LLPFError, match=r"'1.in_proj_weight' .* cannot be cut"):
        flat.ensure()
    assert torch.equal(flat.data, before)
    assert flat.version == 0
    module[1].in_proj_weight.data = values
    flat.ensure()
    assert torch.equal(flat.data, before)


def test_row_wise_parametrizations_are_cut() -> None:
    module = nn.Sequential(Attention())
    parametrizations.weight_norm(module[0].to_kv)
    flat = FlatParameters(module, cut_attention=True)
    name = "0.to_kv.parametrizations.weight.original"
    assert [length for _, _, length in rows_of(flat, f"{name}0")] == [7, 7]
    assert [length for _, _, length in rows_of(flat, f"{name}1")] == [35, 35]


def test_a_table_is_cut_into_pieces() -> None:
    table = SegmentTable.from_lengths([4, 6], names=["a", "b"], flags=[SegmentFlag.NONE, SegmentFlag.HOLD], chunk=2)
    cut = table.cut({1: [("[x]", 1), ("[y]", 5)]})
    assert [(r.name, r.offset, r.length, r.distance_group, r.flags) for r in cut.rows] == [
        ("a", 0, 4, 0, 0),
        ("b[x]", 16, 1, 1, SegmentFlag.HOLD),
        ("b[y]", 17, 5, 1, SegmentFlag.HOLD),
    ]
    assert (cut.numel, cut.chunk) == (table.numel, 2)
    assert cut.chunks.tolist() == [[0, 0, 2], [0, 2, 2], [1, 16, 1], [2, 17, 2], [2, 19, 2], [2, 21, 1]]
    with pytest.raises(LLPFError, match="pieces of 'b' have 5 elements, not 6"):
        table.cut({1: [("", 5)]})
