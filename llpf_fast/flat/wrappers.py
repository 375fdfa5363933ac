"""``unwrapped``: the module inside torch's wrappers of a whole network (torch.compile, DataParallel, ...)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from ..errors import LLPFError

#: Wrappers whose modules take long to import: module, class, attribute with the wrapped network. No instance exists
#: before its module was imported.
_LAZY_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
)
_SHARDED = (
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
)
_REMEDY = "pass the module inside, whole, in one process"


def unwrapped(module: nn.Module, what: str = "the model") -> nn.Module:
    """The network inside torch.compile, DataParallel, AveragedModel and activation checkpoints; else ``module``.

    Only wrappers of the whole network count, nested to any depth; nothing is changed. A wrapped part
    (``net.body = torch.compile(net.body)``) stays wrapped.

    Args:
        module: any module.
        what: its name in messages.

    Raises:
        LLPFError: not a module; DistributedDataParallel, FSDP (either kind), DTensor or lazy parameters anywhere in it.
    """
    if not isinstance(module, nn.Module):
        raise LLPFError(f"{what} must be a torch.nn.Module, got {type(module).__name__}")
    # Not by truth value: a module without layers has length 0, and a compiled one asks the network inside.
    while (inner := inner_of(module)) is not None:
        module = inner
    _refuse_sharded(module, what)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise LLPFError(f"{name!r} of {what} is lazy and has no shape yet: run one batch through the module first")
    return module


def check_usable(module: nn.Module, what: str = "the model") -> None:
    """Refuse an architecture that cannot compute: a TorchScript program, or tensors on the meta device (LLPFError)."""
    if isinstance(module, torch.jit.ScriptModule):
        raise LLPFError(f"{what} is a TorchScript program: pass the torch.nn.Module that it was made from")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise LLPFError(f"{name!r} of {what} is on the meta device and has no values: build the module on the CPU")


def outermost(path: str, by_path: Mapping[str, nn.Module]) -> str:
    """``path``, or the path of the outermost wrapper around the module there."""
    while path and inner_of(by_path[path.rpartition(".")[0]]) is by_path[path]:
        path = path.rpartition(".")[0]
    return path


def inner_of(module: nn.Module) -> nn.Module | None:
    """The module that ``module`` wraps; None where it is no wrapper."""
    if isinstance(module, (nn.DataParallel, AveragedModel)):
        return module._modules["module"]
    for location, name, attribute in _LAZY_WRAPPERS:
        wrapper = _imported_class(location, name)
        if wrapper is not None and isinstance(module, wrapper):
            return module._modules[attribute]
    return None


def _imported_class(location: str, name: str) -> Any:
    """The class ``name`` of the module ``location``; None where nothing has imported that."""
    return getattr(sys.modules.get(location), name, None)


def _refuse_sharded(module: nn.Module, what: str) -> None:
    sharded = tuple(cls for location, name in _SHARDED if (cls := _imported_class(location, name)) is not None)
    for path, each in module.named_modules():
        if isinstance(each, nn.parallel.DistributedDataParallel):
            raise LLPFError(
                f"{_named(what, path)} is a DistributedDataParallel, which waits for other processes: {_REMEDY}"
            )
        if isinstance(each, sharded):
            kind = next(cls.__name__ for cls in sharded if isinstance(each, cls))
            article = "an" if kind.startswith("FSDP") else "a"
            raise LLPFError(
                f"{_named(what, path)} is {article} {kind}: its parameters lie in several processes: {_REMEDY}"
            )
    distributed = _imported_class("torch.distributed.tensor", "DTensor")
    if distributed is None:
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not is_lazy(tensor) and isinstance(tensor.data, distributed):
            raise LLPFError(f"{name!r} of {what} is a DTensor, which lies in several processes: {_REMEDY}")


def _named(what: str, path: str) -> str:
    return f"{path!r} of {what}" if path else what
