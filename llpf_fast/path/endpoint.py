"""``load_endpoint``: one trained network, wherever it comes from, as the architecture's own state dict."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat.parameter_sites import ties
from ..flat.tensors import cast, dtype_name, exact, is_rounding, same_bits
from ..flat.wrappers import unwrapped
from .model_file import choose_state, is_extra_state, load_model_file, match_names
from .state import check_finite, compare_architectures, detached

#: A module, a state dict (or a checkpoint dictionary that holds one), or a file.
Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]

_LISTED = 4
#: What old ways of computing a weight call its two parts, and what they are.
_COMPUTED = (
    ("_g", "_v", "the old torch.nn.utils.weight_norm", "call torch.nn.utils.remove_weight_norm before saving it"),
    ("_orig", "_mask", "torch.nn.utils.prune", "call torch.nn.utils.prune.remove before saving it"),
    (
        "_orig",
        "_u",
        "the old torch.nn.utils.spectral_norm",
        "call torch.nn.utils.remove_spectral_norm before saving it",
    ),
)


def load_endpoint(
    source: Source, module: nn.Module, role: str, *, model: str = "the model", key: str | None = None
) -> dict[str, Tensor]:
    """The network in ``source`` as a state dict of ``module``: its names, order, shapes and dtypes; on the CPU.

    What wrappers put before names is left out (``match_names``). Of tied weights one name is enough; the others are
    filled in, as the same tensor. Floating tensors take the module's dtype: without a word where every value stays the
    same, with one warning where values are rounded. Buffers of other dtypes only take it where every value stays.
    Extra state (``get_extra_state``) has to equal the module's own; what of it is no tensor is then left out.

    Args:
        source: a module, a state dict, or a file.
        module: the architecture; never changed.
        role: what messages call a source that has no file name ("start", "destination").
        model: what messages call ``module``.
        key: as in ``load_model_file``.

    Returns:
        every tensor of ``module.state_dict()``, in its order. Where nothing had to be converted or moved these are the
        tensors of a state dict that was given, detached but not copied; a module's are copied.

    Raises:
        LLPFError: one line naming the source and the tensor: another architecture; tied names with different values;
            parameters that are integer or complex; values that the module's dtype cannot hold; extra state that
            differs; NaN or infinity in a parameter or in running statistics; as ``load_model_file``.
    """
    module = unwrapped(module, model)
    own = module.state_dict(keep_vars=True)
    also = [name for name, value in own.items() if not isinstance(value, Tensor)]
    source_name, tensors, extra = _read(source, role, key, also)
    groups = ties(module)
    found = match_names({**tensors, **extra}, own, source_name, tied=groups, optional=also)
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    for group in groups:
        _fill_in(state, group)
    _refuse_computed(state, own, source_name)
    compare_architectures(own, state, model, source_name)
    _check_extra(found, own, source_name, model)
    state = _in_dtypes_of(
        state, own, {name for name, _ in module.named_parameters(remove_duplicate=False)}, source_name
    )
    for group in groups:
        _check_tied(state, group, source_name)
    check_finite(state, source_name, module)
    return state


def _read(
    source: Source, role: str, key: str | None, also: Sequence[str]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if isinstance(source, nn.Module):
        content = unwrapped(source, role).state_dict()
        tensors, extra = choose_state(content, role, None, [n for n, v in content.items() if not isinstance(v, Tensor)])
        return role, {name: detached(value) for name, value in tensors.items()}, extra
    if isinstance(source, Mapping):
        return (role, *choose_state(source, role, key, also))
    if isinstance(source, (str, os.PathLike)):
        file = load_model_file(source, key=key)
        return str(file.path), file.state, file.extra
    raise LLPFError(f"{role} must be a module, a state dict or a file, got {type(source).__name__}")


def _fill_in(state: dict[str, Tensor], group: Sequence[str]) -> None:
    present = [name for name in group if name in state]
    for name in group if present else ():
        state.setdefault(name, state[present[0]])


def _check_tied(state: dict[str, Tensor], group: Sequence[str], source: str) -> None:
    for name in group[1:]:
        first, other = state[group[0]], state[name]
        if not (first is other or torch.equal(first, other) or same_bits(first, other)):
            raise LLPFError(
                f"{source}: {group[0]!r} and {name!r} are one tensor of the model but have different values; make them "
                "equal, or untie them in the model"
            )
        state[name] = first


def _refuse_computed(state: Mapping[str, Tensor], own: Mapping[str, Any], source: str) -> None:
    """Say what it is rather than that names differ."""
    for name in state:
        for first, second, what, remedy in _COMPUTED:
            stem = name.removesuffix(first)
            if stem != name and stem + second in state and name not in own:
                raise LLPFError(
                    f"{source} holds {name!r} and {stem + second!r}, which {what} made of {stem!r}; {remedy}"
                )


def _check_extra(found: Mapping[str, Any], own: Mapping[str, Any], source: str, model: str) -> None:
    for name, value in found.items():
        if name not in own and not isinstance(value, Tensor):
            raise LLPFError(f"{source} has extra state {name!r}, {model} has none; give both the same")
    for name, value in own.items():
        if isinstance(value, Tensor) and not is_extra_state(name):
            continue
        if name in found and not same_value(value, found[name]):
            raise LLPFError(
                f"{source} and {model} have different extra state {name!r}, which no path can change on its way; give "
                f"{model} the state that {source} has"
            )


def same_value(a: Any, b: Any) -> bool:
    """Whether two values of extra state are equal: tensors bit for bit, containers entry by entry."""
    if type(a) is not type(b):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same_bits(a, b)
    if isinstance(a, Tensor):
        return same_bits(a, b)
    if isinstance(a, io.BytesIO):
        return a.getvalue() == b.getvalue()
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_value(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_value, a, b))
    if type(a).__eq__ is object.__eq__:
        return a is b or (hasattr(a, "__dict__") and same_value(vars(a), vars(b)))
    try:
        return bool(a == b) or bool(a != a and b != b)
    except (ValueError, RuntimeError, TypeError):  # arrays
        return bool(a.shape == b.shape and (a == b).all()) if hasattr(a, "shape") else False


def _in_dtypes_of(
    state: Mapping[str, Tensor], own: Mapping[str, Any], parameters: set[str], source: str
) -> dict[str, Tensor]:
    done: dict[tuple[int, torch.dtype], Tensor] = {}
    fitted, rounded = {}, []
    for name, like in own.items():
        if not isinstance(like, Tensor):
            continue
        value = state[name]
        if name in parameters:
            _check_parameter(name, value, like, source)
        # Tied names stay one tensor.
        at = id(value), like.dtype
        if at not in done:
            done[at] = cast(value.to("cpu"), like.dtype)
            if not exact(value, done[at]):
                _check_range(name, value, done[at], source)
                rounded.append(name)
        fitted[name] = done[at]
    if rounded:
        _warn_rounded(rounded, state, own, source)
    return fitted


def _check_parameter(name: str, value: Tensor, like: Tensor, source: str) -> None:
    if not like.is_floating_point():
        raise LLPFError(
            f"parameter {name!r} of the model is {dtype_name(like)}, and only real floating point parameters can move: "
            "make it a buffer, or convert it"
        )
    if not value.is_floating_point():
        raise LLPFError(
            f"{source}: parameter {name!r} is {dtype_name(value)} where the model has {dtype_name(like)}; save it as "
            f"{dtype_name(like)}"
        )


def _check_range(name: str, value: Tensor, converted: Tensor, source: str) -> None:
    """Rounding is allowed between floating (or complex) dtypes that hold the values, nothing else is."""
    if not is_rounding(value, converted):
        raise LLPFError(
            f"{source}: {name!r} is {dtype_name(value)} with values that {dtype_name(converted)}, as the model has it, "
            "cannot hold; save it as the model has it"
        )
    wide = value.to("cpu") if value.element_size() > 1 else value.to("cpu", torch.float32)
    if bool((wide.isfinite() & ~converted.isfinite()).any()):
        raise LLPFError(
            f"{source}: {name!r} is {dtype_name(value)} with values beyond the range of the model's "
            f"{dtype_name(converted)}; convert the model to {dtype_name(value)}"
        )


def _warn_rounded(names: Sequence[str], state: Mapping[str, Tensor], own: Mapping[str, Any], source: str) -> None:
    kinds = sorted({f"{dtype_name(state[name])} to {dtype_name(own[name])}" for name in names})
    warnings.warn(
        f"{source}: values are rounded from {' and '.join(kinds)}, as the model has them ({_listed(names)}); convert "
        "the model to keep them",
        stacklevel=4,
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
