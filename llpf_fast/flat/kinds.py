"""Layer kinds: what a parameter is for, told from the type of the module that owns it."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .survey import Place, places


class LayerKind(Enum):
    """What a parameter is for. Running statistics are buffers, never parameters, and so have no kind."""

    #: Affine weight or bias of a normalization layer.
    NORM = "norm"
    #: Additive term of any other layer.
    BIAS = "bias"
    #: Query, key and value projections stacked in one tensor, a third of the rows each (weight or bias).
    FUSED_ATTENTION = "fused_attention"
    OTHER = "other"


#: torch's own normalization layers, and those that libraries write from scratch (LlamaRMSNorm, T5LayerNorm,
#: EvoNorm2dB0, FusedLayerNorm, ...). Anchored at the end: a LayerNormMLP holds more than a normalization.
_NORM_CLASS = re.compile(
    r"(batch|layer|group|instance|rms|evo|simple|switchable|filterresponse)_?norm(alization)?"
    r"(act|tlu|fp32)*([123]d)?(act)?(\w?\d)?$",
    re.IGNORECASE,
)
_ATTENTION_CLASS = re.compile("attention|attn", re.IGNORECASE)
_FUSED_LINEARS = ("qkv", "to_qkv")


def layer_kinds(module: nn.Module, is_norm: Callable[[nn.Module], bool] | None = None) -> dict[str, LayerKind]:
    """The kind of every parameter, by every name it has (``state_dict`` keys, tied names included).

    A tied parameter has the kind of its first place under each of its names. A parametrized tensor's originals have
    the kind of the tensor they stand for.

    Args:
        module: any module.
        is_norm: also counts every module for which it returns True as a normalization layer.
    """
    by_path = dict(module.named_modules(remove_duplicate=False))
    kinds: dict[str, LayerKind] = {}
    first: dict[int, LayerKind] = {}
    for place in places(module):
        kind = first.setdefault(id(place.parameter), _kind(place, by_path, is_norm))
        kinds[place.name] = kind
    return kinds


def _kind(place: Place, by_path: dict[str, nn.Module], is_norm: Callable[[nn.Module], bool] | None) -> LayerKind:
    path, attribute, owner = place.name.rpartition(".")[0], place.attribute, place.owner
    if isinstance(owner, ParametrizationList):
        # HOST.parametrizations.TENSOR.original0 stands for TENSOR of HOST.
        path, _, attribute = path.rpartition(".")
        path = path.removesuffix("parametrizations").removesuffix(".")
        owner = by_path[path]
    if is_normalization(owner) or (is_norm is not None and is_norm(owner)):
        return LayerKind.NORM
    if isinstance(owner, nn.MultiheadAttention) and attribute in ("in_proj_weight", "in_proj_bias"):
        return LayerKind.FUSED_ATTENTION
    parent_path, _, child = path.rpartition(".")
    if path and _is_fused_linear(owner, child, by_path[parent_path]):
        return LayerKind.FUSED_ATTENTION
    return LayerKind.BIAS if _is_bias(attribute) else LayerKind.OTHER


def is_normalization(module: nn.Module) -> bool:
    """Whether the module is a normalization layer: its class, or one it inherits from, is named as one."""
    return any(_NORM_CLASS.search(cls.__name__) for cls in type(module).__mro__)


def _is_fused_linear(owner: nn.Module, child: str, parent: nn.Module) -> bool:
    return (
        isinstance(owner, nn.Linear)
        and child in _FUSED_LINEARS
        and owner.out_features == 3 * owner.in_features
        and any(_ATTENTION_CLASS.search(cls.__name__) for cls in type(parent).__mro__)
    )


def _is_bias(attribute: str) -> bool:
    """torch's own layers call it bias, in_proj_bias, bias_k or bias_ih_l0; no type tells for a user's own."""
    return attribute == "bias" or attribute.startswith("bias_") or attribute.endswith("_bias")
