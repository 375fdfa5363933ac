"""The ops in Triton: one file an op, each with the signature of the eager kernel that specifies it.

Importing needs triton and no GPU; kernels compile at their first launch. With ``TRITON_INTERPRET=1`` set before the
import they run on CPU tensors in Triton's interpreter, which is how they are tested without a GPU.
Parameters of kernels carry no types because Triton would evaluate them (hence ``allow-untyped-defs`` for mypy).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

try:
    import triton  # noqa: F401
except ImportError as missing:
    raise ImportError(
        "llpf_fast.kernels needs triton, which is not installed: pip install triton, or choose another backend"
    ) from missing

from llpf_fast.ops.library import EAGER


def _launcher(stem: str) -> Callable[..., Any]:
    return getattr(import_module(f".{stem}", __name__), f"{stem}_triton")


#: Launchers by the name of their op in ``torch.ops.llpf_fast``.
KERNELS = {op: _launcher(op.rstrip("_")) for op in EAGER}

__all__ = ["KERNELS"]
