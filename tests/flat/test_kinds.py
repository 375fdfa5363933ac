"""Layer kinds are told from module types, whatever the parameters are called."""

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
    """Named like a norm layer's parameter, but no norm layer."""

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
def test_look_alikes_of_other_libraries(name: str) -> None:
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


def test_predicate_for_a_users_own_layer() -> None:
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


def test_a_linear_is_fused_only_by_type_shape_and_place() -> None:
    assert layer_kinds(WindowAttention(rows=8))["qkv.weight"] is OTHER
    assert layer_kinds(WindowAttention("expand"))["expand.weight"] is OTHER
    assert layer_kinds(nn.ModuleDict({"qkv": nn.Linear(4, 12)}))["qkv.weight"] is OTHER


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
