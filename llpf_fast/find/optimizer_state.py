"""A torch optimiser's state as tensors and plain values, so that checkpoints need no pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError

_PREFIX = "optimizer/"
#: Stands for a tensor inside a list or dictionary of the state (the histories of L-BFGS).
_PLACE = "tensor of the optimizer"


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and everything else as JSON-ready values."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        plain[str(index)] = {}
        for name, value in entries.items():
            key = f"{_PREFIX}{index}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                plain[str(index)][name] = _without_tensors(value, key, tensors)
    return tensors, {"state": plain, "param_groups": saved["param_groups"], "class": type(optimizer).__name__}


def _without_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {_PLACE: key}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _without_tensors(item, f"{key}/{name}", tensors) for name, item in value.items()}
    return value


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The reverse of :func:`pack`; LLPFError where that was another optimiser."""
    name = type(optimizer).__name__
    if plain.get("class", name) != name or not _fits(optimizer.state_dict()["param_groups"], plain["param_groups"]):
        raise LLPFError("cannot resume: the checkpoint holds the state of another optimiser; give the same again")
    left = {key: value for key, value in tensors.items() if key.startswith(_PREFIX)}
    state: dict[int, dict[str, Any]] = {int(i): _with_tensors(entries, left) for i, entries in plain["state"].items()}
    for key, value in left.items():
        index, name = key.removeprefix(_PREFIX).split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})


def _with_tensors(value: Any, left: dict[str, Tensor]) -> Any:
    """``value`` with its tensors in their places, which are taken out of ``left``."""
    if isinstance(value, list):
        return [_with_tensors(item, left) for item in value]
    if isinstance(value, dict):
        return left.pop(value[_PLACE]) if _PLACE in value else {k: _with_tensors(v, left) for k, v in value.items()}
    return value


def _fits(made: list[dict[str, Any]], saved: list[dict[str, Any]]) -> bool:
    """Whether the groups ``saved`` are those ``made``; an optimiser's steps may have added entries to them."""
    return len(made) == len(saved) and all(
        fresh.keys() <= old.keys() and len(fresh["params"]) == len(old["params"])
        for fresh, old in zip(made, saved, strict=True)
    )
