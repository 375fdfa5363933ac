"""Values of :class:`Settings` that cannot work, refused by their key."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError

if TYPE_CHECKING:
    from .settings import Settings

_POSITIVE = (
    "threshold",
    "max_ticks",
    "arrival_margin",
    "arrival_every",
    "record_every",
    "checkpoint_every",
    "shrink_ticks",
    "correction.threshold",
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
    """Raise :class:`LLPFError` naming the first key whose value cannot work."""
    for key, choice, choices in _choices(settings):
        if choice not in choices:
            raise LLPFError(f"{key} must be one of {', '.join(map(str, choices))}; got {choice!r}")
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
    for key, flag in (("channels_last", correction.channels_last), ("compile", correction.compile)):
        if not (isinstance(flag, bool) or (flag is None and key == "channels_last")):
            raise LLPFError(f"correction.{key} must be true or false, got {flag!r}")
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
    if pace.grow < 1 or pace.shrink > 1 or pace.back >= 1:
        raise LLPFError(
            f"pace.grow must be at least 1, pace.shrink at most 1 and pace.back below 1; "
            f"got {pace.grow}, {pace.shrink}, {pace.back}"
        )
    if not pace.smallest <= 1 <= pace.largest:
        raise LLPFError(f"pace.smallest and pace.largest must enclose 1, got {pace.smallest} and {pace.largest}")


def _choices(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Key, value and choices of every field that is a Literal. Recipes are checked as they are read; Python is not."""
    hints = typing.get_type_hints(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if is_dataclass(value):
            yield from _choices(value, f"{prefix}{field.name}.")
            continue
        kinds = (hint, *typing.get_args(hint))
        literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
        if literals and not (value is None and type(None) in kinds):
            yield prefix + field.name, value, tuple(c for kind in literals for c in typing.get_args(kind))


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
