"""``copied``: an independent copy of a module, whose hooks, closures and bound methods refer to the copy."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import LLPFError, one_line
from .tensors import overlaps_itself
from .wrappers import check_usable


def rebind(module: nn.Module, twin_of: Mapping[int, Any]) -> None:
    """Replace the original by the copy in closures, hooks, bound methods and weak references of the copy's attributes.

    Args:
        module: the original.
        twin_of: the memo of its ``copy.deepcopy``: the copy by the id of the original object.
    """
    originals = (*module.modules(), *module.parameters(), *module.buffers())
    twins = {id(each): twin_of[id(each)] for each in originals if id(each) in twin_of}
    rebinding = _Rebinding(twins)
    for twin in [twins[id(each)] for each in module.modules() if id(each) in twins]:
        attributes = vars(twin)
        for name, value in list(attributes.items()):
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            if name.endswith("_hooks") and isinstance(value, dict):
                for key, hook in list(value.items()):
                    value[key] = rebinding(hook)
                continue
            attributes[name] = rebinding(value)


class _Rebinding:
    def __init__(self, twins: Mapping[int, Any]) -> None:
        self._twins = twins
        #: By id: the value itself, so that the id is not used again, and its replacement.
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """``value`` with the originals in it replaced; the same object where there are none."""
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) not in self._done:
            # Entered first with itself: inside a recursive function or list nothing is replaced.
            self._done[id(value)] = value, value
            self._done[id(value)] = value, self._replacement(value)
        return self._done[id(value)][1]

    def _replacement(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            owner = self(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if type(value) is functools.partial:
            parts = self([value.func, list(value.args), dict(value.keywords)])
            return functools.partial(parts[0], *parts[1], **parts[2]) if self._differ(parts, value) else value
        if type(value) is weakref.ref:
            target = value()
            return weakref.ref(self._twins[id(target)]) if id(target) in self._twins else value
        if type(value) in (list, tuple):
            items = [self(item) for item in value]
            same = all(new is old for new, old in zip(items, value, strict=True))
            return value if same else type(value)(items)
        if type(value) is dict:
            entries = {key: self(item) for key, item in value.items()}
            return value if all(entries[key] is value[key] for key in value) else entries
        return value

    @staticmethod
    def _differ(parts: list[Any], value: functools.partial[Any]) -> bool:
        return (
            parts[0] is not value.func
            or any(new is not old for new, old in zip(parts[1], value.args, strict=True))
            or any(parts[2][key] is not value.keywords[key] for key in parts[2])
        )

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = function.__closure__ or ()
        closure = tuple(map(self._cell, cells))
        defaults = self(function.__defaults__)
        by_name = self(function.__kwdefaults__)
        same = all(new is old for new, old in zip(closure, cells, strict=True))
        if same and defaults is function.__defaults__ and by_name is function.__kwdefaults__:
            return function
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
        twin.__kwdefaults__ = by_name
        for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
            setattr(twin, name, getattr(function, name))
        vars(twin).update(vars(function))
        return twin

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # empty: not assigned yet
            return cell
        twin = self(content)
        return cell if twin is content else types.CellType(twin)


def copied(module: nn.Module, what: str = "the model") -> nn.Module:
    """``copy.deepcopy(module)`` on the same device, independent of the original.

    Functions in attributes and hooks of the copy refer to the copy where they referred to the module (:func:`rebind`).
    Expanded buffers get separate memory in the copy, so that values can be written into them. The old ``weight_norm``
    and ``spectral_norm`` and ``prune`` are always refused: they store a tensor that a forward pass computes as an
    attribute, and after a pass in training deepcopy fails on it.

    Args:
        module: any module; never changed.
        what: its name in messages.

    Raises:
        LLPFError: one of these three; a TorchScript program or tensors on the meta device; anything else that deepcopy
            refuses (locks, handles, results of a pass in an attribute); a copy whose forward would compute with the
            original's parameters. The message names the submodule, the attribute and the remedy.
    """
    check_usable(module, what)
    for path, each in module.named_modules():
        _refuse_computed(path, each, what)
        _refuse_closure(path, each, module, what)
    memo: dict[int, Any] = {}
    try:
        twin = copy.deepcopy(module, memo)
    except Exception as error:  # a user's class may raise anything
        unknown = f"{what} cannot be copied ({type(error).__name__}: {one_line(error)}): make copy.deepcopy work for it"
        raise LLPFError(_first_refused(module, what) or unknown) from error
    if not isinstance(twin, nn.Module):
        raise LLPFError(f"{what} cannot be copied: __deepcopy__ of {type(module).__name__} gives no module; remove it")
    originals = set(map(id, module.parameters()))
    shared = [name for name, parameter in twin.named_parameters() if id(parameter) in originals]
    if shared:
        raise LLPFError(
            f"{what} cannot be copied: copy.deepcopy gives a module with the same parameter {shared[0]!r}; let "
            "__deepcopy__ copy it"
        )
    rebind(module, memo)
    materialize_expanded_buffers(twin)
    return twin


def materialize_expanded_buffers(module: nn.Module) -> None:
    """Replace every expanded buffer of ``module`` by a contiguous one."""
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and not is_lazy(buffer) and overlaps_itself(buffer):
                # Tied buffers stay one tensor. The old one stays referenced, so that its id is not used again.
                _, owner._buffers[name] = done.setdefault(id(buffer), (buffer, buffer.contiguous()))


def _refuse_computed(path: str, module: nn.Module, what: str) -> None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            raise LLPFError(
                f"{_layer(path, module, what)} uses the old torch.nn.utils.weight_norm ({hook.name!r}), which cannot "
                "be copied: call torch.nn.utils.remove_weight_norm on it, or use "
                "torch.nn.utils.parametrizations.weight_norm"
            )
        if isinstance(hook, SpectralNorm):
            raise LLPFError(
                f"{_layer(path, module, what)} uses the old torch.nn.utils.spectral_norm ({hook.name!r}), which cannot "
                "be copied: call torch.nn.utils.remove_spectral_norm on it, or use "
                "torch.nn.utils.parametrizations.spectral_norm"
            )
        if isinstance(hook, BasePruningMethod):
            raise LLPFError(
                f"{_layer(path, module, what)} is pruned ({hook._tensor_name!r}) by torch.nn.utils.prune, which cannot "
                f"be copied: make it permanent with torch.nn.utils.prune.remove(layer, {hook._tensor_name!r})"
            )


def _refuse_closure(path: str, module: nn.Module, whole: nn.Module, what: str) -> None:
    """Refuse a ``forward`` set on the instance that refers to the network itself: deepcopy does not copy functions."""
    forward = vars(module).get("forward")
    if not isinstance(forward, types.FunctionType):
        return
    originals = {id(value) for value in (*whole.modules(), *whole.parameters())}
    referenced = [*_cells(forward), *(forward.__defaults__ or ()), *(forward.__kwdefaults__ or {}).values()]
    if any(id(value) in originals for value in referenced):
        raise LLPFError(
            f"{_layer(path, module, what)} has a forward function on the instance that refers to the network itself, "
            "so a copy would compute with the original's parameters: define forward in the class"
        )


def _cells(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty: not assigned yet
            continue


def _first_refused(module: nn.Module, what: str) -> str | None:
    """A message about the first attribute that deepcopy refuses; None where each alone can be copied."""
    for path, each in module.named_modules():
        attributes = {**vars(each), **each._parameters, **each._buffers}
        for name, value in attributes.items():
            if name in ("_modules", "_parameters", "_buffers") or _can_be_copied(value, module):
                continue
            problem = f"{_layer(path, each, what)} cannot be copied because of its attribute {name!r}"
            if isinstance(value, Tensor) and not value.is_leaf:
                return f"{problem}, the result of a pass: store {name}.detach() there, or set it to None"
            return f"{problem}, a {type(value).__name__}: make it inside forward, or leave it out in __deepcopy__"
    return None


def _can_be_copied(value: object, module: nn.Module) -> bool:
    # Submodules in the attribute count as copied: each is checked by itself.
    memo: dict[int, object] = {id(each): each for each in module.modules()}
    try:
        copy.deepcopy(value, memo)
    except Exception:
        return False
    return True


def _layer(path: str, module: nn.Module, what: str) -> str:
    return f"layer {path!r} ({type(module).__name__}) of {what}" if path else f"{what} ({type(module).__name__})"
