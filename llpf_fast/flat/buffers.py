"""What a path may do with a module's buffers: which are statistics, which stay as they are, which cannot be passed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import LLPFError
from .dtypes import dtype_name

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_LISTED = 4


def statistics(module: nn.Module) -> frozenset[str]:
    """Names (``state_dict`` keys, aliases included) of the running statistics of torch's batch and instance norms.

    Told by the layer's type: BatchNorm, SyncBatchNorm, InstanceNorm and what derives from them.
    """
    return frozenset(
        f"{path}.{name}" if path else name
        for path, owner in module.named_modules(remove_duplicate=False)
        if isinstance(owner, _NormBase)
        for name in _STATISTICS
        if owner._buffers.get(name) is not None
    )


def fixed_buffers(module: nn.Module) -> list[str]:
    """Names of the module's buffers that are in its ``state_dict`` and are no statistics, aliases included."""
    kept, moving = module.state_dict(keep_vars=True), statistics(module)
    return [name for name, _ in module.named_buffers(remove_duplicate=False) if name in kept and name not in moving]


def check_buffers(start: Mapping[str, Tensor], destination: Mapping[str, Tensor] | None, module: nn.Module) -> None:
    """Whether a straight line leads from the buffers of ``start`` to those of ``destination``.

    Statistics (:func:`statistics`) may differ; they belong to their waypoint. Every other buffer that is the same at
    both ends, bit for bit, stays as it is, whatever its dtype and values (infinite masks too). Floating and complex
    ones that differ are interpolated on the path's last segment: one warning names them. Nothing is converted here:
    both ends have the dtypes and shapes of the module, as ``load_endpoint`` gives them.

    Args:
        start, destination: complete state dicts; nothing is compared where the destination is ``None``.
        module: the architecture.

    Raises:
        LLPFError: integer or bool buffers that differ; floating or complex ones whose infinite or NaN values differ.
    """
    if destination is None:
        return
    different = [name for name in fixed_buffers(module) if not same_bits(start[name], destination[name])]
    for name in different:
        a, b = start[name], destination[name].to(start[name].device)
        if not (a.is_floating_point() or a.is_complex()):
            raise LLPFError(
                f"buffer {name!r} ({dtype_name(a)}) differs between start and destination, and "
                "no straight line leads from one to the other: give both the same"
            )
        if not torch.equal(_bits_where_not_finite(a), _bits_where_not_finite(b)):
            raise LLPFError(
                f"buffer {name!r} has NaN or infinite values that differ between start and destination, so what lies "
                "between is no number: give both the same"
            )
    if different:
        more = f" and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
        warnings.warn(
            f"buffers differ between start and destination and are interpolated on the path's last segment: "
            f"{', '.join(map(repr, different[:_LISTED]))}{more}",
            stacklevel=2,
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and bits: 0.0 and -0.0 differ, NaNs of one payload agree. On any two devices."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bits(a), _bits(b.to(a.device)))


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def _bits_where_not_finite(tensor: Tensor) -> Tensor:
    """uint8 ``[elements, bytes]``: the bits of every value that is infinite or NaN, 0 elsewhere."""
    wide = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
    bits = _bits(tensor).view(tensor.numel(), tensor.element_size())
    return bits.masked_fill(wide.isfinite().reshape(-1, 1), 0)
