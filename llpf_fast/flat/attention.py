"""Query, key and value projections, told from the type of a layer, its name and what stands beside it."""

from __future__ import annotations

import re

from torch import nn

from .layer_kind import LayerKind
from .wrappers import inner_of

_ATTENTION_CLASS = re.compile("attention|attn", re.IGNORECASE)
_QKV = (LayerKind.QUERY, LayerKind.KEY, LayerKind.VALUE)
_KV = _QKV[1:]

#: timm, vit-pytorch and diffusers, nanoGPT, flash-attention. No ``qkv_proj``: CodeGen's interleaves its rows.
_FUSED_QKV = ("qkv", "to_qkv", "c_attn", "Wqkv")
#: Where the concatenated heads go in: its input width is that of one of the stacked projections.
_OUTPUTS = ("proj", "to_out", "out_proj", "c_proj", "o_proj", "wo", "out")
#: Names of separate projections and of a stack of key and value, which only count beside each other.
_FAMILIES = (
    ("q", "k", "v", "kv"),
    ("q_proj", "k_proj", "v_proj", "kv_proj"),
    ("query", "key", "value", "key_value"),
    ("to_q", "to_k", "to_v", "to_kv"),
    ("wq", "wk", "wv", "wkv"),
    ("q_lin", "k_lin", "v_lin", "kv_lin"),
)
_OF_TORCH = {
    "in_proj_weight": _QKV,
    "in_proj_bias": _QKV,
    "q_proj_weight": (LayerKind.QUERY,),
    "k_proj_weight": (LayerKind.KEY,),
    "v_proj_weight": (LayerKind.VALUE,),
    # One more key and value behind those of the sequence, in the projections' space.
    "bias_k": (LayerKind.KEY,),
    "bias_v": (LayerKind.VALUE,),
}


def projections(owner: nn.Module, attribute: str, child: str, parent: nn.Module | None) -> tuple[LayerKind, ...]:
    """The projections that the rows of ``owner.attribute`` hold, in order and equal shares; empty if none.

    Recognised are ``nn.MultiheadAttention`` and ``nn.Linear`` children (called ``child``) of a class named like an
    attention: a separate projection only beside its fellows (a value head alone is none), a stack only with as many
    rows as its layers can share (grouped queries stay whole).
    """
    if isinstance(owner, nn.MultiheadAttention):
        return _OF_TORCH.get(attribute, ())
    if parent is None or not isinstance(owner, nn.Linear):
        return ()
    if not any(_ATTENTION_CLASS.search(cls.__name__) for cls in type(parent).__mro__):
        return ()
    if child in _FUSED_QKV:
        # timm's MaxViT stacks head by head: a third of its rows is no projection.
        interleaved = getattr(parent, "head_first", False) is True
        return _QKV if owner.out_features == 3 * _width(owner, parent) and not interleaved else ()
    for query, key, value, key_value in _FAMILIES:
        stacked = _linear(parent, key_value)
        if not (_linear(parent, query) and (stacked or _linear(parent, key))):
            continue
        if child in (query, key, value):
            return (_QKV[(query, key, value).index(child)],)
        if child == key_value and owner.out_features % 2 == 0:
            return _KV
    return ()


def _linear(parent: nn.Module, child: str) -> bool:
    found = parent._modules.get(child)
    while found is not None and (inner := inner_of(found)) is not None:
        found = inner
    return isinstance(found, nn.Linear)


def _width(owner: nn.Linear, parent: nn.Module) -> int:
    for name in _OUTPUTS:
        output = parent._modules.get(name)
        for layer in output.modules() if output is not None else ():
            if isinstance(layer, nn.Linear):
                return layer.in_features
    return owner.in_features
