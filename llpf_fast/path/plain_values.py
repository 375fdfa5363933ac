"""Plain values: those of JSON and YAML, their checks, and how YAML is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..errors import LLPFError, one_line, shown


def to_plain(value: Any) -> Any:
    """``value`` made of dict, list, str, int, float, bool and None only.

    Dataclasses become dicts, tuples and sets lists (sets sorted), tensors and NumPy arrays nested lists
    (zero-dimensional ones numbers), paths, dtypes and devices strings, enum members their value. Integers of any size
    and float64 values keep every bit. Raises TypeError for a key that is not a string (JSON would turn it into one and
    not back) and for anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is {type(key).__name__}; only string keys survive JSON")
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [to_plain(item) for item in sorted(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, (Path, torch.dtype, torch.device, torch.Size)):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return base(value)
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")


def check_kinds(value: Mapping[str, Any], kinds: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """LLPFError naming ``source`` and the key where a value is of another kind.

    Args:
        value: as read from a file that may have been edited.
        kinds: key -> a key of ``_KINDS``, or a mapping of the kinds inside. A missing key, None, and the values of
            other keys are not checked.
    """
    for key, kind in kinds.items():
        item = value.get(key)
        inside = isinstance(kind, Mapping)
        if item is not None and not _KINDS["names with values" if inside else kind](item):
            what = "names with values" if inside else kind
            raise LLPFError(f"{source} is damaged: {prefix}{key} must be {what}, it is {shown(item)}")
        if inside and item is not None:
            check_kinds(item, kind, source, f"{prefix}{key}.")


def _is_number(value: Any) -> bool:
    """Whether it is a float (also NaN and infinity) or an integer of 64 bits."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda item: isinstance(item, str),
    "number": _is_number,
    "whole number": lambda item: isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**63,
    "positive whole number": lambda item: isinstance(item, int) and not isinstance(item, bool) and 0 < item < 2**63,
    "true or false": lambda item: isinstance(item, bool),
    "list": lambda item: isinstance(item, list),
    "list of numbers": lambda item: isinstance(item, list) and all(map(_is_number, item)),
    "names with values": lambda item: isinstance(item, dict) and all(isinstance(key, str) for key in item),
}


def finite_or_none(value: Any) -> Any:
    """A plain value with every NaN and infinity replaced by None: strict JSON has neither."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


class _Dumper(yaml.SafeDumper):
    """Text that :class:`_Loader` would read as something else is quoted too, such as ``1e-3``."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: ``off``, ``no`` and ``2001-01-01`` are text, ``1e-3`` is a number, ``010`` is ten.

    Tags of other types and keys that occur twice are errors.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                keys.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 16 if text.lower().startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _count(value: Any, known: dict[int, int]) -> int:
    """Number of values in ``value`` with all aliases expanded; ``known`` holds the numbers of parts by id."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in inside)
    return known[id(value)]


#: Far above the number in any run.yaml: some tens of settings, and names of layers.
_MOST_VALUES = 1_000_000


def read_yaml(text: str | bytes) -> Any:
    """The value of YAML ``text``; ValueError, in one line, where it is no YAML.

    Aliases (``*a``) that make a value contain itself, or expand to more than a million values, are errors.
    """
    try:
        value = yaml.load(text, _Loader)
        if _count(value, {}) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values")
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise ValueError(one_line(error)) from None


def write_yaml(value: Any) -> str:
    """Plain ``value`` as YAML that :func:`read_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
