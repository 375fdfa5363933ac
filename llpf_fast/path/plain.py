"""Python values as JSON and YAML can hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """``value`` made of dict, list, str, int, float, bool and None only.

    Dataclasses become dicts, tuples and sets lists (sets sorted), tensors and NumPy arrays nested lists
    (zero-dimensional ones numbers), paths, dtypes and devices strings, enum members their value. Integers of any size
    and float64 values keep every bit. Raises TypeError for a key that is not a string (JSON would turn it into one and
    not back) and for anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is {type(key).__name__}; only string keys survive JSON")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, (Path, torch.dtype, torch.device, torch.Size)):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return base(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")


def finite_or_none(value: Any) -> Any:
    """A plain value with every NaN and infinity replaced by None: strict JSON, which knows neither."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
