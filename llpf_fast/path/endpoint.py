"""``load_endpoint``: a trained network from a module, a state dict or a file, as a state dict of the architecture."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat.parameter_sites import ties
from ..flat.tensors import cast, dtype_name, exact, is_rounding, same_bits
from ..flat.wrappers import unwrapped
from .model_file import choose_state, is_extra_state, load_model_file, match_names
from .state import check_finite, compare_architectures, detached

#: A module, a state dict (or a checkpoint dictionary with one), or a file.
Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]

_LISTED = 4
#: Ways of computing a weight from two tensors: the suffixes of their names, what computes it, the remedy.
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

    Prefixes of wrappers are removed from names (``match_names``). Of tied weights one name is enough; the others get
    the same tensor. Floating tensors are converted to the module's dtypes, with one warning where values are rounded.
    Buffers of other dtypes are converted only where no value changes. Extra state (``get_extra_state``) must equal the
    module's; the parts of it that are no tensors are not returned.

    Args:
        source: a module, a state dict, or a file.
        module: the architecture; it is not changed.
        role: the name in messages of a source that is no file ("start", "destination").
        model: the name of ``module`` in messages.
        key: as in ``load_model_file``.

    Returns:
        Every tensor of ``module.state_dict()``, in its order. A module's tensors are copied; those of a state dict are
        copied where they are converted or moved, otherwise only detached.

    Raises:
        LLPFError: one line naming the source and the tensor: another architecture; tied names with different values;
            parameters that are integer or complex; values that the module's dtype cannot represent; extra state that
            differs; NaN or infinity in a parameter or in running statistics; as ``load_model_file``.
    """
    module = unwrapped(module, model)
    expected = module.state_dict(keep_vars=True)
    no_tensors = [name for name, value in expected.items() if not isinstance(value, Tensor)]
    source_name, tensors, extra = _open_source(source, role, key, no_tensors)
    groups = ties(module)
    entries = match_names({**tensors, **extra}, expected, source_name, tied=groups, optional=no_tensors)
    state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    for group in groups:
        _fill_in(state, group)
    _check_not_computed(state, expected, source_name)
    compare_architectures(expected, state, model, source_name)
    _check_extra(entries, expected, source_name, model)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = _in_dtypes_of(state, expected, parameters, source_name)
    for group in groups:
        _check_tied(state, group, source_name)
    check_finite(state, source_name, module)
    return state


def _open_source(
    source: Source, role: str, key: str | None, no_tensors: Sequence[str]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of ``source`` in messages, its tensors, and its entries that are no tensors."""
    if isinstance(source, nn.Module):
        content = unwrapped(source, role).state_dict()
        tensors, extra = choose_state(content, role, None, [n for n, v in content.items() if not isinstance(v, Tensor)])
        return role, {name: detached(value) for name, value in tensors.items()}, extra
    if isinstance(source, Mapping):
        return (role, *choose_state(source, role, key, no_tensors))
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


def _check_not_computed(state: Mapping[str, Tensor], expected: Mapping[str, Any], source: str) -> None:
    """LLPFError for the parts of a computed weight: it says more than that names differ."""
    for name in state:
        for first, second, what, remedy in _COMPUTED:
            stem = name.removesuffix(first)
            if stem != name and stem + second in state and name not in expected:
                raise LLPFError(
                    f"{source} holds {name!r} and {stem + second!r}, which {what} made of {stem!r}; {remedy}"
                )


def _check_extra(entries: Mapping[str, Any], expected: Mapping[str, Any], source: str, model: str) -> None:
    for name, value in entries.items():
        if name not in expected and not isinstance(value, Tensor):
            raise LLPFError(f"{source} has extra state {name!r}, {model} has none; give both the same")
    for name, value in expected.items():
        if isinstance(value, Tensor) and not is_extra_state(name):
            continue
        if name in entries and not same_value(value, entries[name]):
            raise LLPFError(
                f"{source} and {model} have different extra state {name!r}, which does not change along a path; give "
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
    state: Mapping[str, Tensor], expected: Mapping[str, Any], parameters: set[str], source: str
) -> dict[str, Tensor]:
    """``state`` in the dtypes of ``expected``, on the CPU; tied names remain one tensor."""
    by_tensor: dict[tuple[int, torch.dtype], Tensor] = {}
    converted, rounded = {}, []
    for name, like in expected.items():
        if not isinstance(like, Tensor):
            continue
        value = state[name]
        if name in parameters:
            _check_parameter(name, value, like, source)
        key = id(value), like.dtype
        if key not in by_tensor:
            by_tensor[key] = cast(value.to("cpu"), like.dtype)
            if not exact(value, by_tensor[key]):
                _check_range(name, value, by_tensor[key], source)
                rounded.append(name)
        converted[name] = by_tensor[key]
    if rounded:
        _warn_rounded(rounded, state, expected, source)
    return converted


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
    """LLPFError unless ``converted`` is rounded only: dtypes of one kind, and no value out of range."""
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


def _warn_rounded(names: Sequence[str], state: Mapping[str, Tensor], expected: Mapping[str, Any], source: str) -> None:
    kinds = sorted({f"{dtype_name(state[name])} to {dtype_name(expected[name])}" for name in names})
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    warnings.warn(
        f"{source}: values are rounded from {' and '.join(kinds)}, as the model has them "
        f"({', '.join(map(repr, names[:_LISTED]))}{more}); convert the model to keep them",
        stacklevel=4,
    )
