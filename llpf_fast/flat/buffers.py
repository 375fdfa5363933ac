"""What a path may do with a module's buffers: which are statistics, which stay as they are, which cannot be passed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import LLPFError
from .tensors import dtype_name, same_bits

#: Names that normalization layers give their running statistics.
STATISTICS_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_LISTED = 4


def statistics(module: nn.Module) -> frozenset[str]:
    """Names (``state_dict`` keys, aliases included) of the running statistics of torch's batch and instance norms.

    Told by the layer's type: BatchNorm, SyncBatchNorm, InstanceNorm and what derives from them.
    """
    return frozenset(
        f"{path}.{name}" if path else name
        for path, owner in module.named_modules(remove_duplicate=False)
        if isinstance(owner, _NormBase)
        for name in STATISTICS_BUFFERS
        if owner._buffers.get(name) is not None
    )


def fixed_buffers(module: nn.Module) -> list[str]:
    """Names of the module's buffers that are in its ``state_dict`` and are no statistics, aliases included."""
    kept, moving = module.state_dict(keep_vars=True), statistics(module)
    return [name for name, _ in module.named_buffers(remove_duplicate=False) if name in kept and name not in moving]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The module's buffers by first name, without those that are in no ``state_dict`` (caches)."""
    kept = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def all_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Copies of all buffers by first name, None where a buffer is registered but not made yet."""
    empty = {
        f"{path}.{name}" if path else name: None
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is None
    }
    return {**empty, **{name: buffer.detach().clone() for name, buffer in module.named_buffers()}}


@torch.no_grad()
def set_buffers(module: nn.Module, values: Mapping[str, Tensor | None]) -> None:
    """Put the buffers of ``module`` back to ``values``, as :func:`all_buffers` gives them.

    In place where a buffer has still that form. One that the forward pass made anew since, in another shape, is
    replaced; one that it registered since is taken away, and one that is missing is registered.
    """
    present = dict(module.named_buffers())
    for name, value in values.items():
        old = present.get(name)
        if old is not None and value is not None and (old.shape, old.dtype) == (value.shape, value.dtype):
            old.copy_(value)
        elif old is not None or value is not None:
            new = None if value is None else value.clone() if old is None else value.to(old.device, copy=True)
            for owner, attribute in _hosts(module, name, old):
                if attribute in owner._buffers:
                    owner._buffers[attribute] = new
                else:
                    owner.register_buffer(attribute, new, persistent=False)
    for name in present.keys() - values.keys():
        for owner, attribute in _hosts(module, name, present[name]):
            delattr(owner, attribute)


def _hosts(module: nn.Module, name: str, buffer: Tensor | None) -> list[tuple[nn.Module, str]]:
    """Every module that holds ``buffer``, and as what; the one that ``name`` says where there is none yet."""
    if buffer is None:
        path, _, attribute = name.rpartition(".")
        return [(module.get_submodule(path), attribute)]
    return [(owner, each) for owner in module.modules() for each, held in owner._buffers.items() if held is buffer]


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


def _bits_where_not_finite(tensor: Tensor) -> Tensor:
    """uint8 ``[elements, bytes]``: the bits of every value that is infinite or NaN, 0 elsewhere."""
    wide = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
    bits = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    bits = bits.view(tensor.numel(), tensor.element_size())
    return bits.masked_fill(wide.isfinite().reshape(-1, 1), 0)
