"""The engine follows the oracle for twenty ticks of every member of the family."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch

from .engine import Engine
from .networks import perturbations, values, zoo
from .oracle import Array, Arrays, Walk, describe
from .settings_table import MODES, Case, Dialect, Mode, rules

TICKS = 20
LAYERS = describe(zoo(torch.float64))
START, GOAL = values(1), values(2, wider=True)
CHANGES = perturbations(3, TICKS, START)
SPHERES = {
    "variance-sphere": {name: 0.03 + 0.01 * (i % 3) for i, name in enumerate(START)},
    "norm-sphere": {name: 1.5 + 0.5 * (i % 3) for i, name in enumerate(START)},
}

#: Roundings to float32 of one element in one tick: a*p + b*d + c has three, its product with a0 and the sum with what
#: training did one each, and each is taken at the size of the largest intermediate.
_ROUNDINGS = 5
#: Beside the float64 engine the oracle's own dozen of roundings count as well.
_UNIT = {torch.float32: 2.0**-24, torch.float64: 16 * 2.0**-53}


@dataclass(frozen=True)
class Moment:
    """The oracle after one tick: after the move, the learning rates there, and the waypoint that training led to."""

    moved: Arrays
    rates: dict[str, float]
    waypoint: Arrays
    untouched: dict[str, slice]
    #: Factors on an earlier error: of the move, and of the waypoint's rescale.
    growth: tuple[dict[str, float], dict[str, float]]


def _copy(values: Arrays) -> Arrays:
    return {name: value.copy() for name, value in values.items()}


def told(case: Case) -> list[Moment]:
    walk = Walk(LAYERS, START, rules(case), goal=GOAL, sphere=SPHERES.get(case.mode))
    moments = []
    for k in range(TICKS):
        walk.move()
        moved, rates = _copy(walk.now), {layer.name: walk.rate(layer) for layer in LAYERS}
        rows = {layer.name: walk.untouched_rows(layer) for layer in LAYERS}
        growth = walk.growth
        walk.trained(CHANGES[k])
        still = {name: part for name, part in rows.items() if part is not None}
        moments.append(Moment(moved, rates, _copy(walk.now), still, (growth, walk.growth)))
    return moments


def sizes(moments: list[Moment]) -> dict[str, float]:
    """Largest magnitude that each tensor, its destination or what training did to it ever had: where ulps are taken."""
    return {
        name: max(
            np.abs(v[name]).max() for v in (START, GOAL, *(m.moved for m in moments), *(m.waypoint for m in moments))
        )
        for name in START
    }


class Comparison:
    """Collects what is out of bounds, so that a failure names tensor, tick and size."""

    def __init__(self, case: Case, moments: list[Moment], dtype: torch.dtype) -> None:
        self.case, self.unit, self.size = case, _UNIT[dtype], sizes(moments)
        self.bound = dict.fromkeys(START, 0.0)
        self.found: list[str] = []

    def arrays(self, what: str, tick: int, got: dict[str, Array], expected: Arrays) -> None:
        for name, value in expected.items():
            off = np.abs(got[name] - value).max() if np.isfinite(got[name]).all() else np.inf
            if not off <= self.bound[name]:
                self.found.append(f"{what} of tick {tick}, {name}: off by {off:.3g}, bound {self.bound[name]:.3g}")

    def grow(self, factors: dict[str, float], roundings: int) -> None:
        """One more pass: earlier errors grow by its factors, and its roundings are added."""
        for name, factor in factors.items():
            self.bound[name] = factor * (self.bound[name] + roundings * self.unit * self.size[name])

    def rates(self, tick: int, got: dict[str, float] | None, expected: dict[str, float]) -> None:
        for name, value in expected.items():
            rate = 1.0 if got is None else got[name]
            if not abs(rate - value) <= 64 * tick * self.unit * max(1.0, value):
                self.found.append(f"learning rate of tick {tick}, {name}: {rate:.9g} for {value:.9g}")

    def bits(self, tick: int, before: dict[str, Array], after: dict[str, Array], untouched: dict[str, slice]) -> None:
        for name, rows in untouched.items():
            if not np.array_equal(before[name][rows], after[name][rows]):
                self.found.append(f"move of tick {tick}, {name}: bits of rows that stay have changed")

    def check(self) -> None:
        more = f"\n... and {len(self.found) - 8} more" if len(self.found) > 8 else ""
        assert not self.found, f"{spelled(self.case)}\n" + "\n".join(self.found[:8]) + more


def spelled(case: Case) -> str:
    """The settings of a case that differ from the defaults."""
    given = (f"{f.name}={getattr(case, f.name)}" for f in fields(case) if getattr(case, f.name) != f.default)
    return ",".join(text if len(text) < 60 else text[:57] + "..." for text in given) or "defaults"


def follow(case: Case, dtype: torch.dtype, moments: list[Moment]) -> None:
    engine = Engine(case, START, GOAL, SPHERES.get(case.mode, {}), dtype, TICKS)
    comparison = Comparison(case, moments, dtype)
    comparison.grow(dict.fromkeys(START, 1.0), _ROUNDINGS)
    for k, moment in enumerate(moments):
        before = engine.values()
        engine.move()
        if k:
            comparison.grow(moments[k - 1].growth[1], _ROUNDINGS)
            comparison.arrays("waypoint", k, engine.values(engine.waypoint), moments[k - 1].waypoint)
        comparison.grow(moment.growth[0], 0)
        comparison.arrays("move", k + 1, engine.values(), moment.moved)
        comparison.bits(k + 1, before, engine.values(), moment.untouched)
        comparison.rates(k + 1, engine.rates(), moment.rates)
        engine.trained(CHANGES[k])
    engine.end()
    comparison.grow(moments[-1].growth[1], _ROUNDINGS)
    comparison.arrays("waypoint", TICKS, engine.values(), moments[-1].waypoint)
    comparison.check()
    assert engine.untouched(), "a running statistic changed"


def both(case: Case) -> None:
    moments = told(case)
    for dtype in (torch.float64, torch.float32):
        follow(case, dtype, moments)


def possible(case: Case) -> Case:
    """A tensor without spread has no way to a variance sphere: the engine refuses it unless it is left out."""
    if case.mode != "variance-sphere":
        return case
    return dataclasses.replace(case, keep=(*case.keep, "head.bias"))


def _product() -> Iterator[Case]:
    for mode, dialect, norm, combine in itertools.product(
        MODES,
        ("paper", "authors"),
        (None, "move", "keep", "compensate", "compensate-twice"),
        ("sum", "max"),
    ):
        yield possible(Case(mode=mode, dialect=dialect, normalization=norm, combine=combine))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", list(_product()), ids=spelled)
def test_destination_dialect_norm_rule_and_step_rule(case: Case) -> None:
    both(case)


def _named(*beginnings: str) -> tuple[str, ...]:
    return tuple(name for name in START if name.startswith(beginnings))


#: Layers join one stage after another, as along the data flow.
CUMULATIVE = (
    (0, _named("conv1", "batch")),
    (5, _named("conv1", "batch", "conv2", "group", "attention")),
    (12, tuple(START)),
)
#: The first stage's layers leave again.
IN_TURN = ((0, _named("conv1", "attention", "head")), (7, _named("conv2", "layer", "multihead")))

SWITCHES: dict[str, dict[str, Any]] = {
    "bias joined": {"join_bias": True},
    "bias joined, norms compensate": {"join_bias": True, "normalization": "compensate", "keep": ("conv1.bias",)},
    "long steps": {"fixed": 0.3},
    "long steps, clamped": {"fixed": 0.3, "clamp": True},
    "long steps, not clamped": {"fixed": 0.3, "clamp": False},
    "fixed step only": {"relative": 0.0},
    "relative step only": {"fixed": 0.0},
    "no epsilon": {"epsilon": 0.0},
    "epsilon": {"epsilon": 1e-4},
    "norms rescaled": {"rescale_normalization": True},
    "norms not rescaled": {"rescale_normalization": False},
    "norms kept and rescaled": {"normalization": "keep", "rescale_normalization": True, "rescale_skipped": True},
    "by name": {
        "compensate": ("conv3.weight", "layer.bias"),
        "compensate_twice": ("rms.weight", "fine.weight"),
        "keep": ("conv2.weight", "batch.bias", "head.weight"),
    },
    "learning rate by variance": {"lr_rule": "var", "lr_rule_layers": "all"},
    "learning rate by deviation": {"lr_rule": "std", "lr_rule_layers": "weights"},
    "one learning rate": {"lr_rule": "none"},
    "values": {"attention": "values"},
    "values and their biases": {"attention": "values", "attention_biases": True},
    "values, fixed step": {"attention": "values", "attention_biases": True, "relative": 0.0},
    "values, joined": {"attention": "values", "attention_biases": True, "join_bias": True},
    "values, skipped rescaled": {"attention": "values", "rescale_skipped": True},
    "values, skipped not rescaled": {"attention": "values", "rescale_skipped": False},
    "values, cumulative stages": {"attention": "values", "stages": CUMULATIVE},
    "blended spheres": {"variance": "blend"},
    "blended spheres, stages in turn": {"variance": "blend", "stages": IN_TURN},
    "cumulative stages": {"stages": CUMULATIVE},
    "stages in turn": {"stages": IN_TURN},
    "stages, skipped rescaled": {"stages": IN_TURN, "rescale_skipped": True},
    "stages, skipped not rescaled": {"stages": IN_TURN, "rescale_skipped": False},
}


def _switches() -> Iterator[tuple[Mode, str]]:
    for mode, switch in itertools.product(MODES, SWITCHES):
        if mode == "m2m" or not switch.startswith("blended"):
            yield mode, switch


@pytest.mark.parametrize(("mode", "switch"), _switches())
@pytest.mark.parametrize("dialect", ["paper", "authors"])
def test_single_switches(mode: Mode, dialect: Dialect, switch: str) -> None:
    both(possible(Case(mode=mode, dialect=dialect, **SWITCHES[switch])))
