"""From a recipe's name or a YAML file, and ``key=value`` overrides, to checked :class:`Settings`."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import LLPFError, one_line, unknown_name
from ..path.plain_values import read_yaml
from ..setting_types import first_problem
from ..settings import Settings

_FOLDER = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")
#: Words for true and false in YAML 1.1, which many still write.
_TRUE, _FALSE = ("yes", "on"), ("no", "off")
_SETTINGS = TypeAdapter(Settings)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def recipe_descriptions() -> dict[str, str]:
    """Name to the one-line ``description`` in each recipe's file."""
    return {name: str(_read(name).get("description", "")) for name in recipe_names()}


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Settings:
    """Settings of a shipped recipe, or of a YAML file of one's own, with overrides such as ``step.relative=0.01``.

    Values are YAML (``schedule.stages=[{start: 0, layers: [conv*]}]``); keys that the recipe leaves out keep the
    defaults of :class:`Settings`; a later override wins. ``on``, ``off``, ``yes`` and ``no`` are words where a setting
    has such words to choose from, and true or false where it is one of these. Raises :class:`LLPFError`, in one line,
    for an unknown recipe or key (with the nearest known ones), a value of the wrong type or out of range, and a file
    that is no YAML mapping.
    """
    values = _read(name_or_path)
    values.pop("description", None)
    for override in overrides:
        _merge(values, *_split(override))
    try:
        return _SETTINGS.validate_python(_in_words(values, Settings))
    except ValidationError as error:
        key, problem = first_problem(error, Settings)
        raise LLPFError(f"{_source(key, f'recipe {os.fspath(name_or_path)!r}', overrides)}: {problem}") from None


def _read(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    text_name = os.fspath(name_or_path)
    if text_name.endswith(_SUFFIXES):
        try:
            text: str | bytes = Path(os.path.expanduser(text_name)).read_bytes()
        except (OSError, ValueError) as error:
            raise LLPFError(f"recipe file {text_name} cannot be read: {one_line(error)}") from error
    elif text_name in recipe_names():
        text = (_FOLDER / f"{text_name}.yaml").read_text(encoding="utf-8")
    else:
        hint = unknown_name("recipe", text_name, recipe_names())
        raise LLPFError(f"{hint} (a file of your own must end in .yaml)")
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise LLPFError(f"recipe {text_name} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise LLPFError(f"recipe {text_name} must be a mapping of settings, got {type(values).__name__}")
    return values


def _split(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise LLPFError(f"--set {override}: write it as key=value, for example step.relative=0.01")
    try:
        return key.strip().split("."), read_yaml(text)
    except ValueError as error:
        raise LLPFError(f"--set {one_line(override)[:80]}: the value is not YAML: {error}") from error


def _merge(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        values[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    if isinstance(value, Mapping) and isinstance(values.get(keys[-1]), Mapping):
        for inner_key, inner_value in value.items():
            _merge(values, [keys[-1], inner_key], inner_value)
    else:
        values[keys[-1]] = value


def _source(key: str, recipe: str, overrides: Sequence[str]) -> str:
    """Where the value of ``key`` was set: the last override of it, or the recipe."""
    for override in reversed(overrides):
        name = override.partition("=")[0].strip()
        if key == name or key.startswith((f"{name}.", f"{name}[")) or name.startswith(f"{key}."):
            return f"--set {override}"
    return recipe


def _in_words(value: Any, kind: Any) -> Any:
    """``value`` with true and false, and the words for them, as the setting has them."""
    parts = typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, Mapping):
            return value
        return {key: _in_words(item, hints.get(key)) for key, item in value.items()}
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_in_words(item, parts[0]) for item in value]
    if typing.get_origin(kind) is typing.Literal and isinstance(value, bool):
        return next((word for word in (_TRUE if value else _FALSE) if word in parts), value)
    if kind is bool and isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    for part in parts if typing.get_origin(kind) in (typing.Union, types.UnionType) else ():
        value = _in_words(value, part) if part is not type(None) else value
    return value
