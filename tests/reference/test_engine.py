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
from .oracle import Array, Arrays, Rules, Walk, describe
from .settings_table import MODES, Case, Dialect, Mode, rules

TICKS = 20
LAYERS = describe(zoo(torch.float64))
START, GOAL = values(1), values(2, wider=True)
NAMES = list(START)
CHANGES = perturbations(3, TICKS, START)
FLAT_CHANGES = [np.concatenate([change[name].ravel() for name in NAMES]) for change in CHANGES]
SPHERES = {
    "variance-sphere": {name: 0.03 + 0.01 * (i % 3) for i, name in enumerate(START)},
    "norm-sphere": {name: 1.5 + 0.5 * (i % 3) for i, name in enumerate(START)},
}

#: Roundings to float32 of one element from one waypoint to the next: a*p + b*d + c has three, the product with a0 of
#: the waypoint and the sum with what training did one each; each is taken at the size of the largest value.
_ROUNDINGS = 5
#: Beside the float64 engine the oracle's dozen of roundings counts as well: 1e-13 after twenty ticks.
_UNIT = {torch.float32: 2.0**-24, torch.float64: 16 * 2.0**-53}
#: Where each tensor begins in an array that holds all of them one after another.
_BEGINS = np.cumsum([0, *(value.size for value in START.values())])[:-1]


def _all(tensors: Arrays) -> Array:
    return np.concatenate([tensors[name].ravel() for name in NAMES])


def _largest(everything: Array) -> Array:
    return np.asarray(np.maximum.reduceat(np.abs(everything), _BEGINS))


@dataclass(frozen=True)
class Moment:
    """The oracle after one tick, tensors one after another: what the move made, and the waypoint after training."""

    moved: Array
    waypoint: Array
    rates: dict[str, float]
    #: Elements that the tick leaves alone.
    untouched: Array
    #: Per tensor: factors on an earlier error, of the move and of the waypoint's rescale.
    growth: tuple[Array, Array]


def oracle_moments(case: Case, *, by: Rules | None = None) -> list[Moment]:
    """Twenty ticks of the oracle, by the rules of the settings if not by others."""
    walk = Walk(LAYERS, START, by or rules(case), goal=GOAL, sphere=SPHERES.get(case.mode))
    moments = []
    for change in CHANGES:
        walk.move()
        moved, rates = _all(walk.now), {layer.name: walk.rate(layer) for layer in LAYERS}
        untouched = {name: np.zeros(value.shape, dtype=bool) for name, value in START.items()}
        for layer in LAYERS:
            rows = walk.untouched_rows(layer)
            if rows is not None:
                untouched[layer.name][rows] = True
        growth = walk.growth
        walk.trained(change)
        factors = tuple(np.array([g[name] for name in NAMES]) for g in (growth, walk.growth))
        moments.append(Moment(moved, _all(walk.now), rates, _all(untouched), factors))  # type: ignore[arg-type]
    return moments


class Comparison:
    """Collects what is out of bounds, so that a failure names tensor, tick and size.

    The bound follows the error through the ticks: every waypoint adds its roundings, every pass enlarges what is there
    by its factor.
    """

    def __init__(self, case: Case, moments: list[Moment], dtype: torch.dtype) -> None:
        self.case, self.unit = case, _UNIT[dtype]
        points = [_all(START), _all(GOAL), *(m.moved for m in moments), *(m.waypoint for m in moments)]
        self.size = np.max([_largest(point) for point in points], axis=0)
        self.bound = _ROUNDINGS * self.unit * self.size
        self.differences: list[str] = []

    def values(self, what: str, tick: int, got: Array, expected: Array, growth: Array, *, roundings: int = 0) -> None:
        self.bound = growth * (self.bound + roundings * self.unit * self.size)
        off = _largest(got - expected)
        for i in np.flatnonzero(~(off <= self.bound)):
            self.differences.append(
                f"{what} of tick {tick}, {NAMES[i]}: off by {off[i]:.3g}, bound {self.bound[i]:.3g}"
            )

    def rates(self, tick: int, got: dict[str, float] | None, expected: dict[str, float]) -> None:
        for name, value in expected.items():
            rate = 1.0 if got is None else got[name]
            if not abs(rate - value) <= 64 * tick * self.unit * max(1.0, value):
                self.differences.append(f"learning rate of tick {tick}, {name}: {rate:.9g} for {value:.9g}")

    def bits(self, tick: int, before: Array, after: Array, untouched: Array) -> None:
        changed = untouched & (before.view(np.int64) != after.view(np.int64))
        for i in np.flatnonzero(np.logical_or.reduceat(changed, _BEGINS)):
            self.differences.append(f"tick {tick}, {NAMES[i]}: bits of what stays have changed")

    def check(self) -> None:
        more = f"\nand {len(self.differences) - 8} more" if len(self.differences) > 8 else ""
        assert not self.differences, f"{spelled(self.case)}\n" + "\n".join(self.differences[:8]) + more


def spelled(case: Case) -> str:
    """The settings of a case that differ from the defaults."""
    given = (f"{f.name}={getattr(case, f.name)}" for f in fields(case) if getattr(case, f.name) != f.default)
    return ",".join(text if len(text) < 60 else text[:57] + "etc" for text in given) or "defaults"


def follow(case: Case, dtype: torch.dtype, moments: list[Moment]) -> None:
    engine = Engine(case, START, GOAL, SPHERES.get(case.mode, {}), dtype, TICKS)
    comparison = Comparison(case, moments, dtype)
    for tick, moment in enumerate(moments, 1):
        before = engine.values()
        engine.move()
        moved = engine.values()
        comparison.values("move", tick, moved, moment.moved, moment.growth[0])
        comparison.bits(tick, before, moved, moment.untouched)
        comparison.rates(tick, engine.rates(), moment.rates)
        engine.trained(FLAT_CHANGES[tick - 1])
        trained = engine.values()
        engine.project()
        waypoint = engine.values()
        comparison.values("waypoint", tick, waypoint, moment.waypoint, moment.growth[1], roundings=_ROUNDINGS)
        comparison.bits(tick, trained, waypoint, moment.untouched)
    comparison.check()
    assert engine.untouched(), "a running statistic changed"


def both(case: Case, *, by: Rules | None = None) -> None:
    moments = oracle_moments(case, by=by)
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
    "long steps, clamped": {"fixed": 0.3, "clamp": True},
    "long steps, not clamped": {"fixed": 0.3, "clamp": False},
    "fixed step only": {"relative": 0.0},
    "relative step only": {"fixed": 0.0},
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
    "values, cumulative stages": {"attention": "values", "stages": CUMULATIVE},
    "cumulative stages": {"stages": CUMULATIVE},
    "stages in turn": {"stages": IN_TURN},
}
#: Where layers are rescaled.
M2M_SWITCHES: dict[str, dict[str, Any]] = {
    "no epsilon": {"epsilon": 0.0},
    "epsilon": {"epsilon": 1e-4},
    "norms rescaled": {"rescale_normalization": True},
    "norms not rescaled": {"rescale_normalization": False},
    "norms kept and rescaled": {"normalization": "keep", "rescale_normalization": True, "rescale_skipped": True},
    "values, skipped rescaled": {"attention": "values", "rescale_skipped": True},
    "values, skipped not rescaled": {"attention": "values", "rescale_skipped": False},
    "blended spheres": {"variance": "blend"},
    "blended spheres, values": {"variance": "blend", "attention": "values"},
    "blended spheres, stages in turn": {"variance": "blend", "stages": IN_TURN},
    "stages, skipped rescaled": {"stages": IN_TURN, "rescale_skipped": True},
    "stages, skipped not rescaled": {"stages": IN_TURN, "rescale_skipped": False},
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("dialect", ["paper", "authors"])
@pytest.mark.parametrize("mode", MODES)
def test_single_switches(mode: Mode, dialect: Dialect, switch: str) -> None:
    both(possible(Case(mode=mode, dialect=dialect, **SWITCHES[switch])))


@pytest.mark.parametrize("switch", M2M_SWITCHES)
@pytest.mark.parametrize("dialect", ["paper", "authors"])
def test_single_switches_of_the_rescale(dialect: Dialect, switch: str) -> None:
    both(Case(dialect=dialect, **M2M_SWITCHES[switch]))


@pytest.mark.xfail(strict=True, reason="the ops leave rows that are held out of the distance; see the docstring")
def test_the_authors_measure_the_distance_of_the_whole_attention_tensor() -> None:
    """Their step for value rows is a share of the whole tensor's distance, query and key rows included.

    Ours is measured on the rows that move. The two differ where the fixed length decides the step, and nowhere else.
    """
    case = Case(dialect="authors", attention="values", attention_biases=True, relative=0.0)
    both(case, by=dataclasses.replace(rules(case), value_distance="of the whole"))
