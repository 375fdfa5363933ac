"""A module's buffers: which are running statistics, which are fixed on a path, and how all are saved and restored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import LLPFError
from ..types import StateDict
from .tensors import as_bytes, dtype_name, same_bits

#: Names that normalization layers give their running statistics.
STATISTICS_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
#: Names that one warning lists.
_LISTED = 4


def statistics(module: nn.Module) -> frozenset[str]:
    """Names (``state_dict`` keys, aliases included) of the running statistics of torch's batch and instance norms.

    The layer's type decides: BatchNorm, SyncBatchNorm, InstanceNorm and classes derived from them.
    """
    return frozenset(
        f"{path}.{name}" if path else name
        for path, owner in module.named_modules(remove_duplicate=False)
        if isinstance(owner, _NormBase)
        for name in STATISTICS_BUFFERS
        if owner._buffers.get(name) is not None
    )


def fixed_buffers(module: nn.Module) -> list[str]:
    """Names of the buffers in the module's ``state_dict`` that are not :func:`statistics`, aliases included."""
    persistent, moving = module.state_dict(keep_vars=True), statistics(module)
    names = [name for name, _ in module.named_buffers(remove_duplicate=False)]
    return [name for name in names if name in persistent and name not in moving]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The module's buffers by first name, without those outside its ``state_dict`` (caches)."""
    persistent = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def all_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Copies of all buffers by first name; None where a buffer is registered without a tensor."""
    empty = {
        f"{path}.{name}" if path else name: None
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is None
    }
    return {**empty, **{name: buffer.detach().clone() for name, buffer in module.named_buffers()}}


@torch.no_grad()
def set_buffers(module: nn.Module, values: Mapping[str, Tensor | None]) -> None:
    """Set the buffers of ``module`` to ``values``, the copies that :func:`all_buffers` made.

    In place where shape and dtype are the same. A buffer that a forward pass replaced by one of another shape is
    replaced again; one that it registered is deleted, and one that is missing is registered.
    """
    present = dict(module.named_buffers())
    for name, value in values.items():
        old = present.get(name)
        if old is not None and value is not None and (old.shape, old.dtype) == (value.shape, value.dtype):
            old.copy_(value)
        elif old is not None or value is not None:
            new = None if value is None else value.clone() if old is None else value.to(old.device, copy=True)
            for owner, attribute in _owners(module, name, old):
                if attribute in owner._buffers:
                    owner._buffers[attribute] = new
                else:
                    owner.register_buffer(attribute, new, persistent=False)
    for name in present.keys() - values.keys():
        for owner, attribute in _owners(module, name, present[name]):
            delattr(owner, attribute)


def _owners(module: nn.Module, name: str, buffer: Tensor | None) -> list[tuple[nn.Module, str]]:
    """Every (module, attribute) that is ``buffer``; without a buffer, the one that ``name`` says."""
    if buffer is None:
        path, _, attribute = name.rpartition(".")
        return [(module.get_submodule(path), attribute)]
    return [(owner, key) for owner in module.modules() for key, value in owner._buffers.items() if value is buffer]


def check_buffers(start: StateDict, destination: StateDict | None, module: nn.Module) -> None:
    """Refuse start and destination whose buffers no straight line connects.

    Running statistics (:func:`statistics`) may differ: each waypoint has its own. Any other buffer with the same bits
    in both is constant on the path, whatever its dtype and values (infinite masks too). Floating and complex buffers
    that differ are interpolated on the path's last segment, and one warning names them.

    Args:
        start, destination: complete state dicts with the dtypes and shapes of ``module``, as ``load_endpoint`` gives
            them. Nothing is compared where the destination is None.
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


def _bits_where_not_finite(tensor: Tensor) -> Tensor:
    """uint8 ``[elements, bytes]``: the bits of every value that is infinite or NaN, 0 elsewhere."""
    wide = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
    bits = as_bytes(tensor).view(tensor.numel(), tensor.element_size())
    return bits.masked_fill(wide.isfinite().reshape(-1, 1), 0)
