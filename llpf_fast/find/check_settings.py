"""Values of :class:`Settings` that cannot work, refused by their key."""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError
from ..wording import shown, unknown_name

if TYPE_CHECKING:
    from .settings import Settings

#: Losses may be negative, and so may what bounds them.
_FINITE = ("threshold", "correction.threshold")
_POSITIVE = (
    "max_ticks",
    "arrival_margin",
    "arrival_every",
    "record_every",
    "checkpoint_every",
    "shrink_ticks",
    "correction.min_rounds",
    "correction.batch_size",
    "correction.lr",
    "data_flow.ticks",
    "data_flow.distance",
    "pace.rounds",
    "pace.grow",
    "pace.shrink",
    "pace.back",
    "pace.largest",
    "pace.smallest",
    "pace.margin",
    "pace.glance",
)
_AT_LEAST_ZERO = (
    "step.fixed",
    "step.relative",
    "step.epsilon",
    "correction.momentum",
    "correction.weight_decay",
    "pace.average",
    "screen_size",
)


def check_settings(settings: Settings) -> None:
    """Raise :class:`LLPFError` naming the first key whose value cannot work; see also ``take_types``."""
    take_types(settings)
    for key in _FINITE:
        value = _value(settings, key)
        if value is not None and (not math.isfinite(value) or not value):
            raise LLPFError(f"{key} must be a finite number other than 0 (below 0 for losses that are), got {value}")
    for key in _POSITIVE:
        value = _value(settings, key)
        if value is not None and (not value > 0 or not math.isfinite(value)):
            raise LLPFError(f"{key} must be positive, got {value}")
    for key in _AT_LEAST_ZERO:
        value = _value(settings, key)
        if value is not None and (not value >= 0 or not math.isfinite(value)):
            raise LLPFError(f"{key} must not be negative, got {value}")
    if settings.step.fixed == 0 and settings.step.relative == 0:
        raise LLPFError("step.fixed and step.relative are both 0: nothing would move")
    correction = settings.correction
    if correction.max_rounds < correction.min_rounds:
        raise LLPFError(
            f"correction.max_rounds ({correction.max_rounds}) must be at least "
            f"correction.min_rounds ({correction.min_rounds})"
        )
    _check_pace(settings)
    _check_stages(settings)
    if settings.variance != "start" and settings.mode != "m2m":
        raise LLPFError(f"variance: {settings.variance} belongs to mode m2m, not to {settings.mode}")
    if settings.spheres and not settings.mode.endswith("-sphere"):
        raise LLPFError(f"spheres belongs to the modes variance-sphere and norm-sphere, not to {settings.mode}")
    for pattern, value in settings.spheres.items():
        if not value > 0 or not math.isfinite(value):
            raise LLPFError(f"spheres[{pattern!r}] must be positive, got {value}")


def _check_pace(settings: Settings) -> None:
    pace = settings.pace
    if settings.pacing == "adaptive" and not settings.threshold > 0:
        raise LLPFError(
            "threshold must be positive with pacing: adaptive, which holds points below a share of it, got "
            f"{settings.threshold}: add a constant to the loss, or set pacing: none"
        )
    if pace.grow < 1 or pace.shrink > 1 or pace.back >= 1:
        raise LLPFError(
            f"pace.grow must be at least 1, pace.shrink at most 1 and pace.back below 1; "
            f"got {pace.grow}, {pace.shrink}, {pace.back}"
        )
    if not pace.smallest <= 1 <= pace.largest:
        raise LLPFError(f"pace.smallest and pace.largest must enclose 1, got {pace.smallest} and {pace.largest}")


#: Whole numbers beyond it fit no counter of torch.
_WIDEST = 2**63
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a dict"}


def take_types(settings: Settings) -> None:
    """Make every value of ``settings`` one of its field's type, in place.

    Groups and stages may be dicts (``step={"relative": 0.1}``), lists tuples, and numbers NumPy's: run.yaml, where a
    search is compared with those given when it is resumed, knows plain values only. Raises :class:`LLPFError` naming
    the key of anything else: a dict with an unknown key, text for a number, true or false for a number, None where
    there must be a value.
    """
    _take_fields(settings, "")


def _take_fields(group: Any, prefix: str) -> None:
    for name, kind in typing.get_type_hints(type(group)).items():
        setattr(group, name, _typed(getattr(group, name), kind, prefix + name))


def _typed(value: Any, kind: Any, key: str) -> Any:
    """``value`` as ``kind``, one of the types that fields of :class:`Settings` have."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (part for part in parts if part is not type(None))
        return _typed(value, kind, key)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in parts:
            raise LLPFError(f"{key} must be one of {', '.join(parts)}; got {shown(value)}")
        return value
    if is_dataclass(kind):
        return _typed_group(value, typing.cast("type[Any]", kind), key)
    if origin is list and isinstance(value, (list, tuple)):
        return [_typed(item, parts[0], f"{key}[{place}]") for place, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            _typed(name, parts[0], f"a name in {key}"): _typed(item, parts[1], f"{key}[{name!r}]")
            for name, item in value.items()
        }
    flag = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if kind is bool and flag:
        return bool(value)
    if kind is int and isinstance(value, numbers.Integral) and not flag:
        if abs(int(value)) >= _WIDEST:
            raise LLPFError(f"{key} must lie between -2**63 and 2**63, got {shown(value)}")
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not flag:
        try:
            return float(value)
        except OverflowError:
            pass
    if kind is str and isinstance(value, str):
        return str(value)
    raise LLPFError(f"{key} must be {_WORDS[origin or kind]}, got {shown(value)}")


def _typed_group(value: Any, kind: type[Any], key: str) -> Any:
    names = typing.get_type_hints(kind)
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                raise LLPFError(f"{key}: {unknown_name('setting', str(name), names)}")
        value = kind(**value)
    if not isinstance(value, kind):
        raise LLPFError(f"{key} must be {kind.__name__}(...) or a dict of its keys, got {shown(value)}")
    _take_fields(value, f"{key}.")
    return value


def _check_stages(settings: Settings) -> None:
    if settings.mode == "infinity":
        waits = settings.schedule == "data-flow" and settings.data_flow.ticks is None
        if waits or (settings.schedule == "stages" and any(s.start is None for s in settings.stages[1:])):
            what = "data_flow.ticks" if waits else "stages[...].start"
            raise LLPFError(f"mode infinity has no distance that gets smaller: give {what}, a number of ticks")
    if settings.schedule == "data-flow":
        if settings.data_flow.ticks is None and settings.data_flow.distance is None:
            raise LLPFError("data_flow needs ticks or distance: otherwise no second layer would ever move")
        return
    stages = settings.stages
    if not stages:
        raise LLPFError("stages must hold at least one stage")
    for i, stage in enumerate(stages):
        if not stage.layers:
            raise LLPFError(f"stages[{i}].layers is empty: nothing would move")
        if i and stage.start is None and stage.distance is None:
            raise LLPFError(f"stages[{i}] needs start (a tick) or distance (a share): otherwise it never begins")
        if stage.distance is not None and not 0 < stage.distance < 1:
            raise LLPFError(f"stages[{i}].distance must lie between 0 and 1, got {stage.distance}")
    if stages[0].start not in (None, 0):
        raise LLPFError(f"stages[0].start is {stages[0].start}, but the first stage begins at tick 0")
    starts = [s.start for s in stages if s.start is not None]
    if starts != sorted(set(starts)):
        raise LLPFError("stages must be in order of start, each start once")


def _value(settings: Settings, key: str) -> float | None:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    assert value is None or isinstance(value, (int, float))
    return value
