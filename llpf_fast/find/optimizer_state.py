"""A torch optimiser's state as tensors and plain values, so that checkpoints need no pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError

_PREFIX = "optimizer/"


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and everything else as JSON-ready values."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        plain[str(index)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{_PREFIX}{index}/{name}"] = value
            else:
                plain[str(index)][name] = value
    return tensors, {"state": plain, "param_groups": saved["param_groups"]}


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The reverse of :func:`pack`; LLPFError where that was another optimiser."""
    if _outline(optimizer.state_dict()["param_groups"]) != _outline(plain["param_groups"]):
        raise LLPFError("cannot resume: the checkpoint holds the state of another optimiser; give the same again")
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in plain["state"].items()}
    for key, value in tensors.items():
        if key.startswith(_PREFIX):
            index, name = key.removeprefix(_PREFIX).split("/", 1)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})


def _outline(groups: list[dict[str, Any]]) -> list[tuple[list[str], int]]:
    return [(sorted(group), len(group["params"])) for group in groups]
