"""``unwrapped``: the plain module behind torch's wrappers of a whole network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from ..errors import LLPFError

#: Wrappers whose class is defined where importing it would take long: module, class, attribute that is wrapped. An
#: instance cannot exist before its module was imported.
_ELSEWHERE = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
)
_SHARDED = (
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
)
_REMEDY = "pass the plain module inside, whole, in one process"


def unwrapped(module: nn.Module, what: str = "the model") -> nn.Module:
    """The module that does the computing: without torch.compile, DataParallel, AveragedModel, activation checkpoints.

    Only what wraps the whole network is taken off, however deep it is nested; the module itself is never changed. A
    part that is wrapped (``net.body = torch.compile(net.body)``) stays as it is. What comes back is the same object
    wherever nothing wraps it.

    Args:
        module: any module.
        what: what a message calls it.

    Raises:
        LLPFError: not a module; DistributedDataParallel, FSDP (either kind), DTensor or lazy parameters anywhere in it.
    """
    if not isinstance(module, nn.Module):
        raise LLPFError(f"{what} must be a torch.nn.Module, got {type(module).__name__}")
    # Never by truth value: a module without layers has length 0, and a compiled one asks the network inside.
    while (inner := inner_of(module)) is not None:
        module = inner
    _refuse_sharded(module, what)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise LLPFError(f"{name!r} of {what} is lazy and has no shape yet: run one batch through the module first")
    return module


def check_usable(module: nn.Module, what: str = "the model") -> None:
    """LLPFError where an architecture cannot compute as it is: a TorchScript program, tensors without values."""
    if isinstance(module, torch.jit.ScriptModule):
        raise LLPFError(f"{what} is a TorchScript program: pass the torch.nn.Module that it was made from")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise LLPFError(f"{name!r} of {what} is on the meta device and has no values: build the module on the CPU")


def outermost(path: str, by_path: Mapping[str, nn.Module]) -> str:
    """The path under which the parent of the module at ``path`` knows it: that of what wraps it, if anything does."""
    while path and inner_of(by_path[path.rpartition(".")[0]]) is by_path[path]:
        path = path.rpartition(".")[0]
    return path


def inner_of(module: nn.Module) -> nn.Module | None:
    """What ``module`` wraps; None where it is no wrapper."""
    if isinstance(module, (nn.DataParallel, AveragedModel)):
        return module._modules["module"]
    for place, name, attribute in _ELSEWHERE:
        wrapper = _known(place, name)
        if wrapper is not None and isinstance(module, wrapper):
            return module._modules[attribute]
    return None


def _known(place: str, name: str) -> Any:
    """The class ``name`` of the module ``place``; None where nothing has imported that."""
    return getattr(sys.modules.get(place), name, None)


def _refuse_sharded(module: nn.Module, what: str) -> None:
    sharded = tuple(known for place, name in _SHARDED if (known := _known(place, name)) is not None)
    for path, each in module.named_modules():
        if isinstance(each, nn.parallel.DistributedDataParallel):
            raise LLPFError(
                f"{_at(what, path)} is a DistributedDataParallel, which waits for other processes: {_REMEDY}"
            )
        if isinstance(each, sharded):
            kind = next(known.__name__ for known in sharded if isinstance(each, known))
            article = "an" if kind.startswith("FSDP") else "a"
            raise LLPFError(
                f"{_at(what, path)} is {article} {kind}: its parameters lie in several processes: {_REMEDY}"
            )
    distributed = _known("torch.distributed.tensor", "DTensor")
    if distributed is None:
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not is_lazy(tensor) and isinstance(tensor.data, distributed):
            raise LLPFError(f"{name!r} of {what} is a DTensor, which lies in several processes: {_REMEDY}")


def _at(what: str, path: str) -> str:
    return f"{path!r} of {what}" if path else what
