"""The ops in Triton: one file an op, each with the signature of the eager kernel that specifies it.

Importing needs triton and no GPU; kernels compile at their first launch. With ``TRITON_INTERPRET=1`` set before the
import they run on CPU tensors in Triton's interpreter, which is how they are tested without a GPU.
Parameters of kernels carry no types because Triton would evaluate them (hence ``allow-untyped-defs`` for mypy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton  # noqa: F401
except ImportError as missing:
    raise ImportError(
        "llpf_fast.kernels needs triton, which is not installed: pip install triton, or choose another backend"
    ) from missing

from .affine import affine_triton
from .coefficients import coefficients_triton
from .draw import draw_triton
from .loss_gate import loss_gate_triton
from .moments import moments_triton
from .sgd import sgd_triton
from .tick import tick_triton

#: Launchers by the name of their op in ``torch.ops.llpf_fast``.
KERNELS: dict[str, Callable[..., Any]] = {
    "moments": moments_triton,
    "coefficients": coefficients_triton,
    "affine_": affine_triton,
    "tick_": tick_triton,
    "sgd_": sgd_triton,
    "loss_gate_": loss_gate_triton,
    "draw_": draw_triton,
}

__all__ = ["KERNELS"]
