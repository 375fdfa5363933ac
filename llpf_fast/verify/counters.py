"""BatchNorm's counts of batches: which integers of a network may change along a path because nothing reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import LLPFError

_COUNTER = "num_batches_tracked"


class _Unread(Tensor):
    """A counter whose value no operation may read."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise LLPFError(f"the network reads {_COUNTER} in eval mode")


def counters(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name in the state dict, and layer, of every count of batches that a normalization layer of torch's keeps.

    A tensor of that name elsewhere is none: a network may read its own.
    """
    for prefix, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            known = str(layer._c._type().qualified_name()).startswith("__torch__.torch.nn.modules.")
        else:
            known = isinstance(layer, _NormBase)
        if known and getattr(layer, _COUNTER, None) is not None:
            yield f"{prefix}.{_COUNTER}" if prefix else _COUNTER, layer


def forbid_reading(module: nn.Module, names: frozenset[str]) -> None:
    """Replace the counters ``names`` of ``module`` so that reading one raises LLPFError.

    A subclass of BatchNorm could take its count for a switch. Those of scripted layers, whose code is torch's, stay.
    """
    for name, layer in counters(module):
        if name in names and not isinstance(layer, torch.jit.ScriptModule):
            layer._buffers[_COUNTER] = torch.zeros(()).as_subclass(_Unread)
