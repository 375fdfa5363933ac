"""``KeptValues``: what modules keep beside parameters and buffers, where a stack would share it between its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NUMBERS = (bool, int, float, complex)


class KeptValues:
    """Tensors and numbers in plain attributes of ``module`` and of all inside it, and in lists and dictionaries there.

    Remembered are the objects themselves and how often each tensor was written to: nothing is copied, and no other
    object can come to lie at a remembered one's address.
    """

    def __init__(self, module: nn.Module) -> None:
        known = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._values: dict[str, tuple[Any, int | None]] = {}
        for prefix, part in module.named_modules():
            for name, value in vars(part).items():
                if name not in _OF_EVERY_MODULE:
                    self._take(f"{prefix}.{name}" if prefix else name, value, known)

    def _take(self, name: str, value: Any, known: set[int]) -> None:
        if isinstance(value, Tensor):
            if id(value) not in known:
                self._values[name] = value, None if value.is_inference() else value._version
        elif isinstance(value, _NUMBERS):
            self._values[name] = value, None
        elif id(value) not in known:
            known.add(id(value))  # a list may hold itself
            for key, item in _items(value):
                self._take(f"{name}[{key!r}]", item, known)

    def changed(self, earlier: KeptValues) -> list[str]:
        """Names of what has appeared, vanished, been replaced or written to since ``earlier``."""
        names = {**earlier._values, **self._values}
        return [name for name in names if not _same(earlier._values.get(name), self._values.get(name))]

    def differs(self, other: KeptValues, name: str) -> bool:
        """Whether ``name`` holds another value in ``other``, of a module of the same architecture."""
        (a, _), (b, _) = (kept._values.get(name, (None, None)) for kept in (self, other))
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype != b.dtype or not torch.equal(a, b)
        return type(a) is not type(b) or bool(a != b)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)


def _same(a: tuple[Any, int | None] | None, b: tuple[Any, int | None] | None) -> bool:
    if a is None or b is None:
        return False
    (old, written), (new, now) = a, b
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return old is new and written == now
    return type(old) is type(new) and bool(old == new)
