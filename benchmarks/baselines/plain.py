"""The tick as plain C++ loops for the compiler, behind one ctypes call: what the arithmetic alone costs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..harness import native

_SOURCE = Path(__file__).with_suffix(".cpp")
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


def _plain_tick() -> Callable[..., None]:
    library = native.library(_SOURCE)
    if library is None:
        return _missing
    run = library.plain_tick
    run.argtypes = (*[_POINTER] * 4, _COUNT, *[ctypes.c_double] * 3)
    run.restype = None
    return run


def _missing(*arguments: object) -> None:
    raise RuntimeError("no C++ compiler")


class Tick:
    """Call it to move ``p`` one tick toward ``d``.

    Args:
        p, d: float32 ``[N]`` on the CPU; p is overwritten.
        offsets, lengths: int64 ``[S]``, where the layers lie in them.
        variance: of every layer's sphere.
        fixed, relative: the step.

    Raises:
        RuntimeError: there is no C++ compiler (when called).
    """

    def __init__(
        self, p: Tensor, d: Tensor, offsets: Tensor, lengths: Tensor, variance: float, fixed: float, relative: float
    ) -> None:
        self._run = _plain_tick()
        self._kept = p, d, offsets, lengths
        pointers = [tensor.data_ptr() for tensor in self._kept]
        self._arguments = (*pointers, len(lengths), variance, fixed, relative)

    def __call__(self) -> None:
        self._run(*self._arguments)
