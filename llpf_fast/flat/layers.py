"""Kinds of parameters (weight, bias, normalization, attention) by their layer, and layers chosen by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from torch import nn

from ..errors import LLPFError
from ..types import IsNorm
from .parameter_sites import ParameterSite, owning_layer, parameter_sites
from .wrappers import inner_of, outermost


class LayerKind(Enum):
    """What a parameter is for. Running statistics are buffers, so they have no kind.

    Biases of normalization layers and of attention projections have the kind of their layer; ``is_bias`` of
    :class:`~llpf_fast.flat.FlatParameters` separates them from the weights.
    """

    #: Affine weight or bias of a normalization layer.
    NORM = "norm"
    #: Additive term of any other layer.
    BIAS = "bias"
    #: Projections stacked in one tensor, equal shares of its rows: query, key, value, or key, value.
    FUSED_ATTENTION = "fused_attention"
    #: A separate projection, or the rows of one that ``FlatParameters(cut_attention=True)`` cuts out of a stack.
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OTHER = "other"


#: torch's normalization layers, and those that libraries write from scratch (LlamaRMSNorm, T5LayerNorm, EvoNorm2dB0,
#: FusedLayerNorm, ...). Anchored at the end: a LayerNormMLP is more than a normalization.
_NORM_CLASS = re.compile(
    r"(batch|layer|group|instance|rms|evo|simple|switchable|filterresponse)_?norm(alization)?"
    r"(act|tlu|fp32)*([123]d)?(act)?(\w?\d)?$",
    re.IGNORECASE,
)
_LAYER_NORM = re.compile("layer_?norm", re.IGNORECASE)


@dataclass(frozen=True)
class Role:
    """What one parameter is for."""

    kind: LayerKind
    #: An additive term of any kind: the bias of a normalization layer or of a query projection too.
    is_bias: bool
    #: Of a layer normalization: torch's, a class derived from it, or one with such a name; not of an RMSNorm.
    is_layer_norm: bool = False
    #: The projections in the rows of a stack (FUSED_ATTENTION), in order and equal shares; else empty.
    pieces: tuple[LayerKind, ...] = ()


def layer_kinds(module: nn.Module, is_norm: IsNorm | None = None) -> dict[str, LayerKind]:
    """The kind of every parameter by name (``state_dict`` keys, tied names included).

    A tied parameter has the kind of its first site under each of its names. The originals of a parametrized tensor
    have the kind of that tensor.

    Args:
        module: any module.
        is_norm: further modules that count as normalization layers.
    """
    return {name: role.kind for name, role in roles(module, is_norm).items()}


def roles(module: nn.Module, is_norm: IsNorm | None = None) -> dict[str, Role]:
    """As :func:`layer_kinds`, with the whole :class:`Role` of each parameter."""
    by_path = dict(module.named_modules(remove_duplicate=False))
    by_name: dict[str, Role] = {}
    first: dict[int, Role] = {}
    for site in parameter_sites(module):
        if id(site.parameter) not in first:
            first[id(site.parameter)] = _role(site, by_path, is_norm)
        by_name[site.name] = first[id(site.parameter)]
    return by_name


def _role(site: ParameterSite, by_path: dict[str, nn.Module], is_norm: IsNorm | None) -> Role:
    path, attribute = owning_layer(site)
    owner = by_path[path]
    is_bias = _is_bias(attribute)
    norm_class = normalization_class(owner)
    if norm_class or (is_norm is not None and is_norm(owner)):
        return Role(LayerKind.NORM, is_bias, is_layer_norm=bool(_LAYER_NORM.search(norm_class)))
    path = outermost(path, by_path)
    parent_path, _, child = path.rpartition(".")
    pieces = projections(owner, attribute, child, by_path[parent_path] if path else None)
    if len(pieces) > 1:
        return Role(LayerKind.FUSED_ATTENTION, is_bias, pieces=pieces)
    if pieces:
        return Role(pieces[0], is_bias)
    return Role(LayerKind.BIAS if is_bias else LayerKind.OTHER, is_bias)


def is_normalization(module: nn.Module) -> bool:
    """Whether the module's class, or one it inherits from, has the name of a normalization."""
    return bool(normalization_class(module))


def normalization_class(module: nn.Module) -> str:
    """Name of the first class in the module's MRO that has the name of a normalization; else ''."""
    return next((cls.__name__ for cls in type(module).__mro__ if _NORM_CLASS.search(cls.__name__)), "")


def _is_bias(attribute: str) -> bool:
    """By name, as no type says it: bias, in_proj_bias, bias_k, bias_ih_l0 in torch's layers."""
    return attribute == "bias" or attribute.startswith("bias_") or attribute.endswith("_bias")


_ATTENTION_CLASS = re.compile("attention|attn", re.IGNORECASE)
_QKV = (LayerKind.QUERY, LayerKind.KEY, LayerKind.VALUE)
_KV = _QKV[1:]

#: timm, vit-pytorch and diffusers, nanoGPT, flash-attention. No ``qkv_proj``: CodeGen's interleaves its rows.
_FUSED_QKV = ("qkv", "to_qkv", "c_attn", "Wqkv")
#: The output projection: its input width is that of one of the stacked projections.
_OUTPUTS = ("proj", "to_out", "out_proj", "c_proj", "o_proj", "wo", "out")
#: Names of separate projections and of a stack of key and value; they count only in one module together.
_FAMILIES = (
    ("q", "k", "v", "kv"),
    ("q_proj", "k_proj", "v_proj", "kv_proj"),
    ("query", "key", "value", "key_value"),
    ("to_q", "to_k", "to_v", "to_kv"),
    ("wq", "wk", "wv", "wkv"),
    ("q_lin", "k_lin", "v_lin", "kv_lin"),
)
_MULTIHEAD_ATTENTION = {
    "in_proj_weight": _QKV,
    "in_proj_bias": _QKV,
    "q_proj_weight": (LayerKind.QUERY,),
    "k_proj_weight": (LayerKind.KEY,),
    "v_proj_weight": (LayerKind.VALUE,),
    # A learned key and value appended to those of the sequence, in the space of the projections.
    "bias_k": (LayerKind.KEY,),
    "bias_v": (LayerKind.VALUE,),
}


def projections(owner: nn.Module, attribute: str, child: str, parent: nn.Module | None) -> tuple[LayerKind, ...]:
    """The projections in the rows of ``owner.attribute``, in order and equal shares; empty if none.

    Recognised are ``nn.MultiheadAttention`` and ``nn.Linear`` children (called ``child``) of a class with the name of
    an attention: a separate projection only if its parent has the others too (a value head alone is none), a stack
    only if its rows split into equal projections (grouped queries stay whole).
    """
    if isinstance(owner, nn.MultiheadAttention):
        return _MULTIHEAD_ATTENTION.get(attribute, ())
    if parent is None or not isinstance(owner, nn.Linear):
        return ()
    if not any(_ATTENTION_CLASS.search(cls.__name__) for cls in type(parent).__mro__):
        return ()
    if child in _FUSED_QKV:
        # timm's MaxViT stacks head by head: no third of its rows is a projection.
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
    """Whether ``child`` of ``parent`` is a linear layer, wrapped or not."""
    layer = parent._modules.get(child)
    while layer is not None and (inner := inner_of(layer)) is not None:
        layer = inner
    return isinstance(layer, nn.Linear)


def _width(owner: nn.Linear, parent: nn.Module) -> int:
    """Rows of one projection: the input width of the output projection, or of ``owner`` where there is none."""
    for name in _OUTPUTS:
        output = parent._modules.get(name)
        for layer in output.modules() if output is not None else ():
            if isinstance(layer, nn.Linear):
                return layer.in_features
    return owner.in_features


_REGEX = "re:"
#: Layer names that one message lists.
_LISTED = 8


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` (shell wildcards, or ``re:`` and a regular expression) matches the whole of ``name``.

    A piece of an attention tensor (``NAME[query]``) also matches as ``NAME``.

    Raises:
        LLPFError: an invalid regular expression.
    """
    names = (name, name.partition("[")[0])
    if pattern.startswith(_REGEX):
        try:
            return any(re.fullmatch(pattern[len(_REGEX) :], n) for n in names)
        except re.error as error:
            raise LLPFError(f"layer pattern {pattern!r} is no regular expression: {error}") from error
    return any(fnmatchcase(n, pattern) for n in names)


def match_layers(names: Sequence[str], patterns: Iterable[str], what: str = "stage pattern") -> list[bool]:
    """Whether each segment name matches at least one pattern; LLPFError names a pattern without a match."""
    chosen = [False] * len(names)
    for pattern in patterns:
        matched = [matches(name, pattern) for name in names]
        if not any(matched):
            more = ", ..." if len(names) > _LISTED else ""
            raise LLPFError(f"{what} {pattern!r} matches no layer; layers are {', '.join(names[:_LISTED])}{more}")
        chosen = [before or now for before, now in zip(chosen, matched, strict=True)]
    return chosen
