"""Layer kinds come from module types, whatever the names of the parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from llpf_fast.flat import FlatParameters, LayerKind, is_normalization, layer_kinds

NORM, BIAS, FUSED, OTHER = LayerKind.NORM, LayerKind.BIAS, LayerKind.FUSED_ATTENTION, LayerKind.OTHER
QUERY, KEY, VALUE = LayerKind.QUERY, LayerKind.KEY, LayerKind.VALUE


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class BatchNormAct2d(nn.BatchNorm2d):
    pass


class Custom(nn.Module):
    """Has parameter names of a normalization layer, but is none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(4))
        self.bias = nn.Parameter(torch.ones(4))


class LayerNormMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_weight = nn.Parameter(torch.ones(4, 4))


class WindowAttention(nn.Module):
    def __init__(self, name: str = "qkv", rows: int = 12) -> None:
        super().__init__()
        setattr(self, name, nn.Linear(4, rows))
        self.proj = nn.Linear(4, 4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        LlamaRMSNorm(),
        BatchNormAct2d(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_parameter_of_a_normalization_layer_is_norm(layer: nn.Module) -> None:
    kinds = layer_kinds(nn.Sequential(nn.Linear(4, 4), layer))
    assert kinds.pop("0.weight") is OTHER
    assert kinds.pop("0.bias") is BIAS
    assert kinds
    assert set(kinds.values()) == {NORM}


@pytest.mark.parametrize(
    "name",
    [
        "T5LayerNorm",
        "LayerNorm2d",
        "EvoNorm2dB0",
        "FusedLayerNorm",
        "RmsNorm2d",
        "GroupNorm1",
        "FilterResponseNormTlu2d",
    ],
)
def test_normalizations_of_other_libraries(name: str) -> None:
    assert is_normalization(type(name, (nn.Module,), {})())


@pytest.mark.parametrize("name", ["PreNormBlock", "LayerNormMLP", "LocalResponse", "Normalizer", "WeightNormLinear"])
def test_not_every_class_with_norm_in_its_name(name: str) -> None:
    assert not is_normalization(type(name, (nn.Module,), {})())


def test_parameter_names_do_not_decide() -> None:
    assert layer_kinds(Custom()) == {"norm_weight": OTHER, "bias": BIAS}
    assert layer_kinds(LayerNormMLP()) == {"fc_weight": OTHER}
    batch_norm_as_conv = nn.ModuleDict({"conv": nn.BatchNorm2d(2), "bn": nn.Conv2d(2, 2, 1)})
    kinds = layer_kinds(batch_norm_as_conv)
    assert kinds == {"conv.weight": NORM, "conv.bias": NORM, "bn.weight": OTHER, "bn.bias": BIAS}


def test_predicate_for_a_layer_of_the_user() -> None:
    assert set(layer_kinds(Custom(), lambda m: isinstance(m, Custom)).values()) == {NORM}


def test_multihead_attention() -> None:
    kinds = layer_kinds(nn.MultiheadAttention(4, 2, add_bias_kv=True))
    assert kinds == {
        "in_proj_weight": FUSED,
        "in_proj_bias": FUSED,
        "out_proj.weight": OTHER,
        "out_proj.bias": BIAS,
        "bias_k": KEY,
        "bias_v": VALUE,
    }
    separate = layer_kinds(nn.MultiheadAttention(4, 2, kdim=6, vdim=6))
    assert separate == {
        "q_proj_weight": QUERY,
        "k_proj_weight": KEY,
        "v_proj_weight": VALUE,
        "in_proj_bias": FUSED,
        "out_proj.weight": OTHER,
        "out_proj.bias": BIAS,
    }


@pytest.mark.parametrize("name", ["qkv", "to_qkv"])
def test_fused_linear_inside_an_attention_module(name: str) -> None:
    kinds = layer_kinds(nn.Sequential(WindowAttention(name)))
    assert kinds[f"0.{name}.weight"] is FUSED
    assert kinds[f"0.{name}.bias"] is FUSED
    assert kinds["0.proj.weight"] is OTHER


def test_a_linear_is_fused_only_by_type_shape_and_parent() -> None:
    assert layer_kinds(WindowAttention(rows=8))["qkv.weight"] is OTHER
    assert layer_kinds(WindowAttention("expand"))["expand.weight"] is OTHER
    assert layer_kinds(nn.ModuleDict({"qkv": nn.Linear(4, 12)}))["qkv.weight"] is OTHER


class Lookup(nn.Module):
    """Linear children by name, (in, out) features, in a class that is no attention."""

    def __init__(self, **layers: tuple[int, int]) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in layers.items():
            setattr(self, name, nn.Linear(fan_in, fan_out))


class SomeAttention(Lookup):
    pass


@pytest.mark.parametrize(
    "names",
    [
        ("q", "k", "v"),
        ("q_proj", "k_proj", "v_proj"),
        ("query", "key", "value"),
        ("to_q", "to_k", "to_v"),
        ("wq", "wk", "wv"),
    ],
)
def test_separate_projections(names: tuple[str, str, str]) -> None:
    sizes = dict.fromkeys(names, (4, 8)) | {"out": (8, 4)}
    kinds = layer_kinds(nn.Sequential(SomeAttention(**sizes)))
    expected = {f"0.{name}": kind for name, kind in zip(names, (QUERY, KEY, VALUE), strict=True)}
    for layer, kind in expected.items():
        assert kinds[f"{layer}.weight"] is kinds[f"{layer}.bias"] is kind
    assert (kinds["0.out.weight"], kinds["0.out.bias"]) == (OTHER, BIAS)
    assert set(layer_kinds(nn.Sequential(Lookup(**sizes))).values()) == {OTHER, BIAS}
    assert set(layer_kinds(nn.ModuleDict({name: nn.Linear(4, 8) for name in names})).values()) == {OTHER, BIAS}


def test_a_projection_counts_only_with_the_others_of_its_family() -> None:
    neither = {OTHER, BIAS}
    assert set(layer_kinds(SomeAttention(value=(4, 1), policy=(4, 2))).values()) == neither
    assert set(layer_kinds(SomeAttention(key=(4, 4), value=(4, 4))).values()) == neither
    assert set(layer_kinds(SomeAttention(query=(4, 4), value=(4, 4))).values()) == neither
    assert set(layer_kinds(SomeAttention(query=(4, 4), to_k=(4, 4), wv=(4, 4))).values()) == neither
    convolutions = SomeAttention()
    for name in ("query", "key", "value", "qkv"):
        setattr(convolutions, name, nn.Conv2d(4, 4, 1))
    assert set(layer_kinds(convolutions).values()) == neither


def test_stacks_of_other_widths() -> None:
    """vit-pytorch: heads times their width need not be the width of the tokens."""
    kind = lambda name, **layers: layer_kinds(SomeAttention(**layers))[f"{name}.weight"]
    assert kind("to_qkv", to_qkv=(4, 24), to_out=(8, 4)) is FUSED
    assert kind("to_qkv", to_qkv=(4, 12), to_out=(8, 4)) is OTHER
    assert kind("c_attn", c_attn=(4, 12), c_proj=(4, 4)) is FUSED
    assert kind("to_kv", to_q=(4, 8), to_kv=(4, 16), to_out=(8, 4)) is FUSED
    assert kind("to_q", to_q=(4, 8), to_kv=(4, 16), to_out=(8, 4)) is QUERY
    assert kind("kv", q=(4, 8), kv=(4, 16)) is FUSED
    assert kind("kv", kv=(4, 16)) is OTHER
    assert kind("kv", q=(4, 8), kv=(4, 15)) is OTHER
    in_a_sequential = SomeAttention(to_qkv=(4, 24))
    in_a_sequential.to_out = nn.Sequential(nn.Linear(8, 4), nn.Dropout())
    assert layer_kinds(in_a_sequential)["to_qkv.weight"] is FUSED


def test_a_stack_that_is_interleaved_by_head_stays_whole() -> None:
    module = WindowAttention()
    module.head_first = True
    assert layer_kinds(module)["qkv.weight"] is OTHER
    module.head_first = False
    assert layer_kinds(module)["qkv.weight"] is FUSED


def test_biases_of_every_kind_are_marked() -> None:
    module = nn.ModuleList(
        [
            nn.MultiheadAttention(4, 2, kdim=6, add_bias_kv=True),
            SomeAttention(q=(4, 4), k=(4, 4), v=(4, 4)),
            nn.LayerNorm(4),
            parametrizations.weight_norm(nn.Linear(4, 4)),
        ]
    )
    flat = FlatParameters(module)
    biases = {name for name, bias in zip(flat.table.names, flat.is_bias, strict=True) if bias}
    assert biases == {
        *("0.bias_k", "0.bias_v", "0.in_proj_bias", "0.out_proj.bias"),
        *("1.q.bias", "1.k.bias", "1.v.bias", "2.bias", "3.bias"),
    }


def test_layer_normalizations_are_marked() -> None:
    def named(name: str) -> nn.Module:
        return type(name, (nn.LayerNorm,), {})(4)

    from_scratch = type("LayerNormFp32", (Custom,), {})()
    layers = {
        "torch": (nn.LayerNorm(4), True),
        "channels first": (named("LayerNorm2d"), True),
        "with activation": (named("LayerNormAct2d"), True),
        "own name": (named("Whitening"), True),
        "from scratch": (from_scratch, True),
        "rms": (nn.RMSNorm(4), False),
        "rms by inheritance": (named("RmsNorm"), False),
        "llama": (LlamaRMSNorm(), False),
        "group": (nn.GroupNorm(2, 4), False),
        "one group": (type("GroupNorm1", (nn.GroupNorm,), {})(1, 4), False),
        "batch": (BatchNormAct2d(4), False),
        "instance": (nn.InstanceNorm1d(4, affine=True), False),
        "not a normalization": (LayerNormMLP(), False),
    }
    module = nn.ModuleDict({name.replace(" ", "_"): layer for name, (layer, _) in layers.items()})
    flat = FlatParameters(module)
    is_layer_norm = dict(zip(flat.table.names, flat.is_layer_norm, strict=True))
    for name, (layer, expected) in layers.items():
        assert {is_layer_norm[f"{name.replace(' ', '_')}.{p}"] for p, _ in layer.named_parameters()} == {expected}, name
    of_a_predicate = FlatParameters(nn.Sequential(Custom()), is_norm=lambda m: isinstance(m, Custom))
    assert of_a_predicate.kinds == (NORM, NORM)
    assert of_a_predicate.is_layer_norm == (False, False)


def test_recurrent_biases() -> None:
    kinds = layer_kinds(nn.LSTM(3, 4))
    assert kinds == {"weight_ih_l0": OTHER, "weight_hh_l0": OTHER, "bias_ih_l0": BIAS, "bias_hh_l0": BIAS}


def test_parametrized_tensors_have_the_kind_they_stand_for() -> None:
    module = nn.Sequential(WindowAttention(), nn.LayerNorm(4))
    parametrizations.weight_norm(module[0].qkv)
    parametrizations.weight_norm(module[0].proj)
    nn.utils.parametrize.register_parametrization(module[1], "weight", nn.Identity())
    nn.utils.parametrize.register_parametrization(module[0].proj, "bias", nn.Identity())
    kinds = layer_kinds(module)
    assert kinds["0.qkv.parametrizations.weight.original0"] is FUSED
    assert kinds["0.qkv.parametrizations.weight.original1"] is FUSED
    assert kinds["0.proj.parametrizations.weight.original1"] is OTHER
    assert kinds["0.proj.parametrizations.bias.original"] is BIAS
    assert kinds["1.parametrizations.weight.original"] is NORM
    root = parametrizations.weight_norm(nn.Linear(2, 2))
    assert layer_kinds(root)["parametrizations.weight.original0"] is OTHER


def test_flat_parameters_have_one_kind_a_segment_and_no_statistics() -> None:
    flat = FlatParameters(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    assert flat.table.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert flat.kinds == (OTHER, BIAS, NORM, NORM)
    assert set(flat.buffers()) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_wrapped_parts_have_the_kinds_of_the_part_inside() -> None:
    def compiled(module: nn.Module) -> nn.Module:
        return torch.compile(module, backend="eager")  # type: ignore[return-value]

    def short(module: nn.Module) -> dict[str, LayerKind]:
        return {
            name.replace("_orig_mod.", "").replace("module.", ""): kind for name, kind in layer_kinds(module).items()
        }

    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    for make in (WindowAttention, lambda: SomeAttention(**dict.fromkeys(names, (4, 4))), lambda: nn.BatchNorm1d(3)):
        kinds = layer_kinds(make())
        assert short(compiled(make())) == kinds
        assert short(nn.DataParallel(make())) == kinds
        parts = make()
        for name in list(parts._modules):
            parts._modules[name] = nn.DataParallel(compiled(parts._modules[name]))
        assert short(parts) == kinds
