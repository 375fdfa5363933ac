"""Read, triad and copy bandwidth: torch's ops and, where there is a compiler, plain C++ loops; the best counts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import native

_SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def _library() -> ctypes.CDLL | None:
    """The loops of stream.cpp, or ``None`` without a compiler: torch's ops alone are used then, with a notice."""
    library = native.library(_SOURCE)
    if library is not None:
        pointers = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        library.stream_read.argtypes = pointers
        library.stream_read.restype = ctypes.c_float
        library.stream_triad.argtypes = (*pointers, ctypes.c_float, ctypes.c_float)
        library.stream_triad.restype = None
    return library


def compiled() -> bool:
    return _library() is not None


def streams(p: Tensor, d: Tensor) -> dict[str, Callable[[], object]]:
    """Calls over float32 p and d, all of n elements, that leave p unchanged: "read ..." moves 8 n bytes (torch.sum as
    well: it reads p and then d), "triad ..." 12 n, "copy" 8 n (p onto itself would be free, so d is written).
    """
    loops: dict[str, Callable[[], object]] = {
        "read torch.sum": lambda: (p.sum(), d.sum()),
        # d 1e-30 is below half a unit in the last place of every p that occurs: p keeps its bits.
        "triad torch.add_": lambda: p.add_(d, alpha=1e-30),
    }
    library = _library() if p.device.type == "cpu" else None
    if library is not None:
        at, n = (p.data_ptr(), d.data_ptr()), p.numel()
        loops["read C++"] = lambda: library.stream_read(*at, n)
        loops["triad C++"] = lambda: library.stream_triad(*at, n, 1.0, 0.0)
    return loops


def copies(p: Tensor, moved: int | None = None) -> Callable[[], object]:
    """A copy that reads and writes ``moved`` bytes together (as many as p holds when missing), from p where it is long
    enough onto a separate buffer.
    """
    words = p.numel() // 2 if moved is None else moved // 8
    source = p[:words] if words <= p.numel() else torch.randn(words, device=p.device)
    to = torch.empty_like(source)
    return lambda: to.copy_(source)
