"""What each mode and dialect means, restated from the paper and the authors' programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .oracle import Habit, Rules

Mode = Literal["m2m", "m2o", "m2o-o", "infinity", "mean", "variance-sphere", "norm-sphere"]
Dialect = Literal["paper", "authors"]
NormName = Literal["move", "keep", "compensate", "compensate-twice"]

MODES: tuple[Mode, ...] = ("m2m", "m2o", "m2o-o", "infinity", "mean", "variance-sphere", "norm-sphere")
_GOALS: dict[Mode, Any] = {
    "m2m": "model",
    "m2o": "origin",
    "m2o-o": "origin",
    "infinity": "infinity",
    "mean": "mean",
    "variance-sphere": "variance sphere",
    "norm-sphere": "norm sphere",
}
_HABITS: dict[str, Habit] = {
    "move": "move",
    "keep": "stay",
    "compensate": "away",
    "compensate-twice": "away twice",
}


@dataclass(frozen=True)
class Case:
    """Settings of one search under the names users know; ``None`` leaves a switch to the dialect."""

    mode: Mode = "m2m"
    dialect: Dialect = "paper"
    fixed: float = 0.002
    relative: float = 0.004
    combine: Literal["sum", "max"] | None = None
    clamp: bool | None = None
    epsilon: float | None = None
    join_bias: bool = False
    normalization: NormName | None = None
    keep: Sequence[str] = ()
    compensate: Sequence[str] = ()
    compensate_twice: Sequence[str] = ()
    attention: Literal["all", "values"] = "all"
    attention_biases: bool = False
    rescale_skipped: bool | None = None
    rescale_normalization: bool | None = None
    lr_rule: Literal["none", "std", "var"] | None = None
    lr_rule_layers: Literal["all", "weights"] | None = None
    variance: Literal["start", "blend"] = "start"
    #: (tick after which it begins, exact names of its layers).
    stages: Sequence[tuple[int, Sequence[str]]] = ()


def rules(case: Case) -> Rules:
    authors = case.dialect == "authors"

    def chosen(value: Any, paper: Any, other: Any) -> Any:
        return (other if authors else paper) if value is None else value

    layer_norm, other_norm = _norms(case, authors)
    habits: dict[str, Habit] = dict.fromkeys(case.keep, "stay")
    habits |= dict.fromkeys(case.compensate, "away")
    habits |= dict.fromkeys(case.compensate_twice, "away twice")
    held = "weights and biases" if case.attention_biases else "weights"
    rescale_idle = chosen(case.rescale_skipped, False, True)
    follows = case.mode in ("m2o", "m2o-o", "infinity", "mean")
    return Rules(
        goal=_GOALS[case.mode],
        fixed=case.fixed,
        relative=case.relative,
        length={"sum": "added", "max": "larger"}[chosen(case.combine, "sum", "max")],  # type: ignore[arg-type]
        stop_at_goal=chosen(case.clamp, True, False),
        epsilon=chosen(case.epsilon, 0.0, 1e-4),
        layer_norm=layer_norm,
        other_norm=other_norm,
        rescale_norms=chosen(case.rescale_normalization, False, True),
        rescale_idle=rescale_idle,
        habits=habits,
        join_bias=case.join_bias,
        hold_query_and_key=held if case.attention == "values" else "",  # type: ignore[arg-type]
        value_rows="of the whole" if rescale_idle else "alone",
        blend=case.variance == "blend",
        stages=[(after + 1, frozenset(names)) for after, names in case.stages],
        rate=("var" if follows else "none") if case.lr_rule is None else case.lr_rule,
        rate_weights_only=chosen(case.lr_rule_layers, "all", "weights") == "weights",
    )


def _norms(case: Case, authors: bool) -> tuple[Habit, Habit]:
    """What LayerNorm does, and what every other normalization layer does."""
    if case.normalization is not None:
        return (_HABITS[case.normalization],) * 2
    if authors and case.mode in ("m2o", "infinity", "mean"):
        return "away", "stay"
    if case.mode in ("m2o-o", "infinity", "mean"):
        return "stay", "stay"
    return "move", "move"
