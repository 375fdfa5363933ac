"""Digests of losses, architectures and code: what is computed is the same where they are. Keys of the cache."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .plain_values import to_plain
from .state import raw_bytes, state_digest


class Unidentifiable(Exception):  # noqa: N818 - no error: what has no digest is computed every time
    """Something that has no digest: a callable without source, an object with hidden state."""


def digest(value: Any) -> str:
    """sha256 of a plain value (dict, list, str, numbers, None), whatever the order of its keys."""
    text = json.dumps(to_plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes."""
    sha256 = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
    sha256.update(raw_bytes(tensor))
    return sha256.hexdigest()


def code_digest(*things: Any) -> str:
    """sha256 over the source files that define ``things`` (modules, classes, functions)."""
    return digest([_source(thing) for thing in things])


def describe_loss(loss_fn: Callable[..., Any]) -> Any:
    """A plain value that differs where the loss computes something else.

    Functions of torch go by name and version, others by name, the contents of the file that defines them, defaults and
    what they close over; ``functools.partial`` and loss modules by their parts.

    Raises:
        Unidentifiable: it has no source, or holds what cannot be described.
    """
    return _describe(loss_fn)


def loss_identity(loss_fn: Callable[..., Any], name: str, *, named: bool) -> dict[str, Any]:
    """What run.yaml records of a loss: its ``name`` and, unless the name defines it (``named``), a digest of its code.

    The digest is None where the code has no source.
    """
    if named:
        return {"name": name}
    try:
        return {"name": name, "sha256": digest(describe_loss(loss_fn))}
    except Unidentifiable:
        return {"name": name, "sha256": None}


def describe_module(module: nn.Module) -> list[Any]:
    """A plain value that differs where the architecture computes something else, whatever its parameters' values.

    Every submodule gives its name, class, the contents of the file that defines the class, its plain attributes, and
    its buffers that no state dict carries.

    Raises:
        Unidentifiable: a class without source, an attribute that cannot be described.
    """
    carried = module.state_dict().keys()
    parts: list[Any] = [[name, str(value.dtype), list(value.shape)] for name, value in module.state_dict().items()]
    for name, part in module.named_modules():
        hidden = {
            key: _tensor_digest(buffer)
            for key, buffer in part.named_buffers(recurse=False)
            if (f"{name}.{key}" if name else key) not in carried
        }
        parts.append([name, _class(type(part)), _attributes(part), hidden, sorted(_hooks(part))])
    return parts


#: Attributes that every nn.Module has, and ``training``, which the evaluator sets.
_MODULE_ATTRIBUTES = {*vars(nn.Module()), "training"}


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: _describe(value) for name, value in sorted(vars(module).items()) if name not in _MODULE_ATTRIBUTES}


def _hooks(module: nn.Module) -> list[str]:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [json.dumps(_describe(hook), sort_keys=True) for hook in hooks]


def _class(kind: type) -> list[Any]:
    return [f"{kind.__module__}.{kind.__qualname__}", _source(kind)]


def _source(thing: Any) -> str:
    """torch's version where torch defines ``thing``, else the digest of its source file."""
    package = (getattr(thing, "__module__", None) or "").partition(".")[0]
    if package == "torch":
        return torch.__version__
    if package == "builtins":
        return ""
    try:
        file = inspect.getsourcefile(thing)
        assert file is not None
        return _file_digest(file, Path(file).stat().st_mtime_ns)
    except (TypeError, OSError, AssertionError) as error:
        raise Unidentifiable(f"{thing!r} has no source file") from error


@functools.lru_cache(maxsize=256)
def _file_digest(file: str, _modified: int) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return to_plain(value)
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return str(value)
    if isinstance(value, Tensor):
        return _tensor_digest(value)
    if isinstance(value, nn.Module):
        return [describe_module(value), state_digest(value.state_dict())]
    if isinstance(value, Mapping):
        return [[_describe(key), _describe(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_describe(item), sort_keys=True) for item in value)
    if isinstance(value, functools.partial):
        return ["partial", _describe(value.func), _describe(value.args), _describe(value.keywords)]
    if isinstance(value, type):
        return _class(value)
    if inspect.isbuiltin(value):
        return [f"{value.__module__}.{value.__qualname__}", torch.__version__]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        name = f"{value.__module__}.{value.__qualname__}"
        return [name, _source(value), value.__code__.co_firstlineno, _describe(value.__defaults__), _describe(cells)]
    if inspect.ismethod(value) and isinstance(value.__self__, nn.Module):
        return [value.__qualname__, _class(type(value.__self__))]
    raise Unidentifiable(f"{type(value).__name__} {value!r}")
