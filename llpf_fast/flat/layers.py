"""Kinds of layers: which parameters are weights, biases, normalization or attention, and layers by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from torch import nn

from ..errors import LLPFError
from .parameter_sites import ParameterSite, owning_layer, parameter_sites
from .wrappers import inner_of, outermost


class LayerKind(Enum):
    """What a parameter is for. Running statistics are buffers, never parameters, and so have no kind.

    Biases of normalization layers and of attention projections have the kind of their layer: ``is_bias`` of
    :class:`~llpf_fast.flat.FlatParameters` tells them from the weights.
    """

    #: Affine weight or bias of a normalization layer.
    NORM = "norm"
    #: Additive term of any other layer.
    BIAS = "bias"
    #: Projections stacked in one tensor, equal shares of its rows: query, key, value, or key, value.
    FUSED_ATTENTION = "fused_attention"
    #: A projection of its own, or the rows of it that ``FlatParameters(cut_attention=True)`` cut out of a stack.
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OTHER = "other"


#: torch's own normalization layers, and those that libraries write from scratch (LlamaRMSNorm, T5LayerNorm,
#: EvoNorm2dB0, FusedLayerNorm, ...). Anchored at the end: a LayerNormMLP holds more than a normalization.
_NORM_CLASS = re.compile(
    r"(batch|layer|group|instance|rms|evo|simple|switchable|filterresponse)_?norm(alization)?"
    r"(act|tlu|fp32)*([123]d)?(act)?(\w?\d)?$",
    re.IGNORECASE,
)
_LAYER_NORM = re.compile("layer_?norm", re.IGNORECASE)


@dataclass(frozen=True)
class Role:
    """All that is told of one parameter."""

    kind: LayerKind
    #: An additive term, of whatever kind: the bias of a normalization layer or of a query projection too.
    is_bias: bool
    #: Of a layer normalization: torch's, one derived from it, or one named so; not of an RMSNorm.
    is_layer_norm: bool = False
    #: What the rows of a stack of projections (FUSED_ATTENTION) are, in order and equal shares; else empty.
    pieces: tuple[LayerKind, ...] = ()


def layer_kinds(module: nn.Module, is_norm: Callable[[nn.Module], bool] | None = None) -> dict[str, LayerKind]:
    """The kind of every parameter, by every name it has (``state_dict`` keys, tied names included).

    A tied parameter has the kind of its first place under each of its names. A parametrized tensor's originals have
    the kind of the tensor they stand for.

    Args:
        module: any module.
        is_norm: also counts every module for which it returns True as a normalization layer.
    """
    return {name: role.kind for name, role in roles(module, is_norm).items()}


def roles(module: nn.Module, is_norm: Callable[[nn.Module], bool] | None = None) -> dict[str, Role]:
    """As :func:`layer_kinds`, with all that is told of a parameter."""
    by_path = dict(module.named_modules(remove_duplicate=False))
    found: dict[str, Role] = {}
    first: dict[int, Role] = {}
    for place in parameter_sites(module):
        if id(place.parameter) not in first:
            first[id(place.parameter)] = _role(place, by_path, is_norm)
        found[place.name] = first[id(place.parameter)]
    return found


def _role(place: ParameterSite, by_path: dict[str, nn.Module], is_norm: Callable[[nn.Module], bool] | None) -> Role:
    path, attribute = owning_layer(place)
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
    """Whether the module is a normalization layer: its class, or one it inherits from, is named as one."""
    return bool(normalization_class(module))


def normalization_class(module: nn.Module) -> str:
    """Name of the module's class, or of the nearest it inherits from, that is named as a normalization; else ''."""
    return next((cls.__name__ for cls in type(module).__mro__ if _NORM_CLASS.search(cls.__name__)), "")


def _is_bias(attribute: str) -> bool:
    """torch's own layers call it bias, in_proj_bias, bias_k or bias_ih_l0; no type tells for a user's own."""
    return attribute == "bias" or attribute.startswith("bias_") or attribute.endswith("_bias")


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


_REGEX = "re:"
_LISTED = 8


def matches(name: str, pattern: str) -> bool:
    """Whether the whole of ``name`` matches. A cut attention tensor (``NAME[query]``) also answers to ``NAME``.

    Raises:
        LLPFError: the regular expression is none.
    """
    names = (name, name.partition("[")[0])
    if pattern.startswith(_REGEX):
        try:
            return any(re.fullmatch(pattern[len(_REGEX) :], n) for n in names)
        except re.error as error:
            raise LLPFError(f"layer pattern {pattern!r} is no regular expression: {error}") from error
    return any(fnmatchcase(n, pattern) for n in names)


def match_layers(names: Sequence[str], patterns: Iterable[str], what: str = "stage pattern") -> list[bool]:
    """Which segment names match at least one pattern; a pattern without any match is refused by name."""
    chosen = [False] * len(names)
    for pattern in patterns:
        hits = [matches(name, pattern) for name in names]
        if not any(hits):
            more = ", ..." if len(names) > _LISTED else ""
            raise LLPFError(f"{what} {pattern!r} matches no layer; layers are {', '.join(names[:_LISTED])}{more}")
        chosen = [old or hit for old, hit in zip(chosen, hits, strict=True)]
    return chosen
