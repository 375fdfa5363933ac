"""Where a call makes the host wait for the device, counted on a CPU: what would read a value of a GPU's memory there.

Not seen are copies between devices, which a CPU never makes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Ops that read values, or whose output has a size that only the values tell.
_WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "unique_dim", "_unique2"}
_WAITING |= {"unique_consecutive", "repeat_interleave"}


class _Values(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in _WAITING or any(isinstance(index, Tensor) and index.dtype == torch.bool for index in chosen):
            self._waits.append(_where(name))
        return func(*args, **(kwargs or {}))


def _where(what: str) -> str:
    """The innermost line of the package that asks for it."""
    frame: Any = sys._getframe(2)
    while frame is not None and "/llpf_fast/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return what
    return f"{frame.f_code.co_filename.rpartition('/llpf_fast/')[2]}:{frame.f_lineno} {what}"


@contextlib.contextmanager
def host_waits() -> Iterator[list[str]]:
    """Every wait inside, as ``file:line what``, in order."""
    waits: list[str] = []
    with pytest.MonkeyPatch.context() as patch, _Values(waits):
        for name in ("tolist", "numpy", "cpu"):
            patch.setattr(Tensor, name, _noted(waits, name))
        yield waits


def _noted(waits: list[str], name: str) -> Any:
    original = getattr(Tensor, name)

    def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        waits.append(_where(name))
        return original(self, *args, **kwargs)

    return call
