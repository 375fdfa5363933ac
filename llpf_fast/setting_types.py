"""Types of the settings' values, checked by pydantic, and the one line about a value that is wrong."""

from __future__ import annotations

import difflib
import functools
import numbers
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from .errors import LLPFError, shown

Group = TypeVar("Group")


def _whole(value: Any) -> int:
    """NumPy's whole numbers as Python's: run.yaml knows plain values only, and they are compared on a resume."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise PydanticCustomError("whole", "must be a whole number")
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            pass
    raise PydanticCustomError("number", "must be a number")


def _flag(value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):
        raise PydanticCustomError("flag", "must be true or false")
    return bool(value)


def _not_zero(value: float) -> float:
    """Losses may be negative, and so may what bounds them."""
    if not value:
        raise PydanticCustomError("zero", "must be a finite number other than 0 (below 0 for losses that are)")
    return value


#: Whole numbers beyond 64 bits fit no counter of torch.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_whole)]
Count = Annotated[int, Field(gt=0, lt=2**63), BeforeValidator(_whole)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
Bound = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_zero), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Share = Annotated[float, Field(gt=0, lt=1), BeforeValidator(_number)]
ShareOrAll = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, Field(strict=True)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings_group(key: str = "") -> Callable[[type[Group]], type[Group]]:
    """Make a frozen dataclass that pydantic checks, with LLPFError in place of its many lines.

    Args:
        key: where the group is in the settings, for messages about a group that is made by itself.
    """

    def decorate(cls: type[Group]) -> type[Group]:
        checked: Any = checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
        validate = checked.__init__

        @functools.wraps(validate)
        def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807
            try:
                validate(self, *args, **values)
            except ValidationError as error:
                raise LLPFError(first_problem(error, checked, key)[1]) from None

        checked.__init__ = __init__
        return typing.cast("type[Group]", checked)

    return decorate


_WORDS = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "names with values",
    "finite_number": "a finite number",
}


def first_problem(error: ValidationError, kind: type[Any], above: str = "") -> tuple[str, str]:
    """The key that is wrong, and one line about it.

    Args:
        kind: the group of settings that was checked.
        above: its own key.
    """
    first = error.errors()[0]
    path = first["loc"]
    key, value, about = _key(path, kind, above), first["input"], first.get("ctx", {})
    name = first["type"]
    if name == "value_error":
        return key, str(about["error"])
    if name == "unexpected_keyword_argument":
        return key, _unknown_key(path, kind, above)
    if name in ("dataclass_type", "dataclass_exact_type"):
        keys = typing.get_type_hints(_kind_at(path, kind))
        return key, f"{key} is a group of keys ({', '.join(keys)}), got {shown(value)}"
    if name == "literal_error":
        choices = ", ".join(re.findall("'([^']*)'", about["expected"]))
        return key, f"{key} must be one of {choices}; got {shown(value)}"
    if name == "invalid_key":
        return key, _unknown_key((*path[:-1], shown(value)), kind, above)
    if name in _WORDS:
        wanted = f"be {_WORDS[name]}"
    elif name == "greater_than" and "lt" not in about:
        wanted = "be positive"
    elif name == "greater_than_equal" and about["ge"] == 0:
        wanted = "not be negative"
    elif about.get("ge", about.get("lt")) in (-(2**63), 2**63):
        wanted = "lie between -2**63 and 2**63"
    elif name == "less_than_equal":
        wanted = f"be at most {about['le']:g}"
    elif name == "less_than":
        wanted = f"lie between 0 and {about['lt']:g}"
    else:
        got = " got" if first["msg"].endswith(";") else ", got"
        return key, f"{key} {first['msg']}{got} {shown(value)}"
    return key, f"{key} must {wanted}, got {shown(value)}"


def _kind_at(path: Sequence[int | str], kind: Any) -> Any:
    """The type of the setting at ``path`` below ``kind``."""
    for part in path:
        if is_dataclass(kind):
            kind = typing.get_type_hints(typing.cast("type[Any]", kind))[str(part)]
        else:
            kind = typing.get_args(kind)[-1]
    return kind


def _key(path: Sequence[int | str], kind: Any, above: str) -> str:
    """``schedule.stages[0].start``, ``spheres.radii['*']``."""
    text = above
    for depth, part in enumerate(path):
        if part == "[key]":
            return f"a name in {_key(path[: depth - 1], kind, above)}"
        if is_dataclass(_kind_at(path[:depth], kind)):
            text += f".{part}" if text else str(part)
        else:
            text += f"[{part!r}]"
    return text


def _unknown_key(path: Sequence[int | str], kind: type[Any], above: str) -> str:
    """The nearest keys: first within the group, then anywhere in ``kind``."""
    name, group = str(path[-1]), _key(path[:-1], kind, above)
    siblings = typing.get_type_hints(_kind_at(path[:-1], kind))
    prefix = f"{group}." if group else ""
    near = [prefix + sibling for sibling in difflib.get_close_matches(name, siblings, cutoff=0.7)]
    if not near:
        leaves = {full.rpartition(".")[2]: full for full in reversed(list(setting_keys(kind)))}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, cutoff=0.6)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known here: {', '.join(siblings)}"
    return f"unknown key {prefix + name!r}; {hint}"


def setting_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key of the group ``kind``, groups before what is in them: ``step``, ``step.fixed``."""
    for name, hint in typing.get_type_hints(kind).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from setting_keys(typing.cast("type[Any]", hint), f"{prefix}{name}.")
