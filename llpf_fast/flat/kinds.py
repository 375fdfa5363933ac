"""Layer kinds: what a parameter is for, told from the type of the module that owns it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .attention import projections
from .layer_kind import LayerKind
from .survey import Place, host, places
from .wrappers import outermost

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
    for place in places(module):
        if id(place.parameter) not in first:
            first[id(place.parameter)] = _role(place, by_path, is_norm)
        found[place.name] = first[id(place.parameter)]
    return found


def _role(place: Place, by_path: dict[str, nn.Module], is_norm: Callable[[nn.Module], bool] | None) -> Role:
    path, attribute = host(place)
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
