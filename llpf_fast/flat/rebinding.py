"""Functions that hold on to a network, made to hold on to its copy: ``copy.deepcopy`` leaves functions as they are."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn


def rebind(module: nn.Module, twin_of: Mapping[int, Any]) -> None:
    """Let what the copy of ``module`` holds refer to the copy: closures in attributes and hooks, weak references.

    Args:
        module: the original.
        twin_of: the memo of its ``copy.deepcopy``: by the id of what was copied, the copy.
    """
    originals = (*module.modules(), *module.parameters(), *module.buffers())
    twins = {id(each): twin_of[id(each)] for each in originals if id(each) in twin_of}
    rebinding = _Rebinding(twins)
    for twin in [twins[id(each)] for each in module.modules() if id(each) in twins]:
        held = vars(twin)
        for name, value in list(held.items()):
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            if name.endswith("_hooks") and isinstance(value, dict):
                for key, hook in list(value.items()):
                    value[key] = rebinding(hook)
                continue
            held[name] = rebinding(value)


class _Rebinding:
    def __init__(self, twins: Mapping[int, Any]) -> None:
        self._twins = twins
        #: By id: the value itself, so that the id is not used again, and what takes its place.
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """``value`` with the originals in it replaced; the very same object where there are none."""
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) not in self._done:
            # A function that calls itself, or a list that holds itself, stays as it is inside.
            self._done[id(value)] = value, value
            self._done[id(value)] = value, self._made_anew(value)
        return self._done[id(value)][1]

    def _made_anew(self, value: Any) -> Any:
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
