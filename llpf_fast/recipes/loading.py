"""From a recipe's name or a YAML file, and ``key=value`` overrides, to checked :class:`Settings`."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import LLPFError, one_line, shown, unknown_name
from ..path.plain_values import read_yaml
from ..settings import Settings, take_types

_FOLDER = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")
#: Words for true and false in YAML 1.1, which many still write.
_TRUE, _FALSE = ("yes", "on"), ("no", "off")


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def recipe_descriptions() -> dict[str, str]:
    """Name to the one-line ``description`` in each recipe's file."""
    return {name: str(_read(name).get("description", "")) for name in recipe_names()}


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Settings:
    """Settings of a shipped recipe, or of a YAML file of one's own, with overrides such as ``step.relative=0.01``.

    Values are YAML (``stages=[{start: 0, layers: [conv*]}]``); keys that the recipe leaves out keep the defaults of
    :class:`Settings`; a later override wins. ``on``, ``off``, ``yes`` and ``no`` are words where a setting has such
    words to choose from, and true or false where it is one of these. Raises :class:`LLPFError`, in one line, for an
    unknown recipe or key (with the nearest known ones), a value of the wrong type or out of range, and a file that is
    no YAML mapping.
    """
    values = _read(name_or_path)
    values.pop("description", None)
    source = f"recipe {os.fspath(name_or_path)!r}"
    _check_keys(values, Settings, source)
    for override in overrides:
        key, value = _split(override)
        _check_keys(_nested(key, value), Settings, f"--set {override}")
        _merge(values, key, value)
    settings = _typed(values, source)
    settings.validate()
    return settings


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


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return typing.cast("dict[str, Any]", value)


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


def _check_keys(values: Any, kind: Any, source: str, path: str = "") -> None:
    """Refuse unknown keys, with the nearest known ones, empty values, and a value for a group."""
    if values is None and type(None) not in typing.get_args(kind):
        raise LLPFError(f"{source}: {path} has no value")
    if isinstance(values, list) and typing.get_origin(kind) is list:
        for index, item in enumerate(values):
            _check_keys(item, typing.get_args(kind)[0], source, f"{path}[{index}]")
    if not isinstance(kind, type) or not is_dataclass(kind):
        return
    hints = _hints(kind)
    if not isinstance(values, Mapping):
        raise LLPFError(f"{source}: {path} is a group of keys ({', '.join(hints)}), got {shown(values)}")
    for key, value in values.items():
        if key not in hints:
            raise LLPFError(f"{source}: {_unknown_key(path, str(key), hints)}")
        _check_keys(value, hints[key], source, f"{path}.{key}" if path else key)


def _unknown_key(path: str, key: str, siblings: Mapping[str, Any]) -> str:
    """The nearest keys: first within the group, then anywhere."""
    prefix = f"{path}." if path else ""
    near = [prefix + name for name in difflib.get_close_matches(key, siblings, cutoff=0.7)]
    if not near:
        leaves = {full.rpartition(".")[2]: full for full in reversed(list(_all_keys(Settings)))}
        near = [leaves[name] for name in difflib.get_close_matches(key, leaves, cutoff=0.6)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known here: {', '.join(siblings)}"
    return f"unknown key {prefix + key!r}; {hint}"


def _all_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(kind).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from _all_keys(typing.cast("type[Any]", hint), f"{prefix}{name}.")


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _typed(values: dict[str, Any], source: str) -> Settings:
    settings = Settings(**_in_words(values, Settings))
    try:
        take_types(settings)
    except LLPFError as error:
        raise LLPFError(f"{source}: {error}") from error
    return settings


def _in_words(value: Any, kind: Any) -> Any:
    """``value`` with true and false, and the words for them, as the setting has them."""
    parts = typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return {key: _in_words(item, hints[key]) for key, item in value.items()}
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_in_words(item, parts[0]) for item in value]
    if typing.get_origin(kind) is typing.Literal and isinstance(value, bool):
        return next((word for word in (_TRUE if value else _FALSE) if word in parts), value)
    if kind is bool and isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    for part in parts if typing.get_origin(kind) in (typing.Union, types.UnionType) else ():
        value = _in_words(value, part) if part is not type(None) else value
    return value
