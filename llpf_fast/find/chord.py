"""``ChordCheck``: looks for points of a chord whose loss is above a limit, with what certificates are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches.forward import fixed_random_numbers
from ..path.polyline import Polyline, Position
from ..types import StateDict
from ..verify.enclosure.bisection import Bounds, Limits, bisect
from ..verify.enclosure.form import NotEnclosedError
from ..verify.enclosure.loss_enclosure import LossEnclosure
from ..verify.evaluator import Evaluator
from ..verify.points import cover_by_points
from ..verify.sample_choice import SampleChoice

#: Searches of larger networks check no chords: bounds keep up to 30 words a parameter in memory.
MOST_PARAMETERS = 1_000_000
#: Share of the few units' loss at an end that a point between must exceed it by.
_END_MARGIN = 0.05


@dataclass(frozen=True)
class Effort:
    """How many samples are looked at, and how often.

    Attributes:
        hardest, others: samples that are enclosed: those of the highest loss, and some of all the rest.
        pieces: on which samples are enclosed. So few samples cost as much as one: 4 to 5 ms for LeNet5 on one core.
        points_hardest, points_others, points_evaluations: where a network has no enclosure, of one sample at one point.
    """

    hardest: int = 16
    others: int = 8
    pieces: int = 32
    points_hardest: int = 48
    points_others: int = 16
    points_evaluations: int = 2_800


@dataclass(frozen=True)
class WeightedUnits:
    """Units (samples, or batches of a loader) of an evaluator, and what the loss of one counts.

    The loss is sum(``weights`` * numerators) / ``denominator``; ``weights`` float64 ``[units]``.
    """

    evaluator: Evaluator
    weights: Tensor
    denominator: float

    @classmethod
    def of(cls, evaluator: Evaluator) -> WeightedUnits:
        """Every unit counts once: the evaluator's own loss."""
        denominators = evaluator.unit_denominators()
        return cls(evaluator, torch.ones_like(denominators), float(denominators.sum()))

    def mean(self, numerators: Tensor) -> float:
        return float((self.weights * numerators).sum()) / self.denominator


class ChordCheck:
    """Suspects a point of a straight line between two networks (ours).

    A few units are chosen by their losses at one evaluated point of the chord: the hardest, and some of all the rest,
    which stand for these. Their losses are enclosed on pieces of the chord, as in a certificate, until a point above
    the limit is met, all is below it, or the effort ends. Where the network has no enclosure, random points are
    evaluated as in its certificates. A suspicion is to be confirmed on all units; without one the chord may still be
    above the limit.

    Args:
        make_units: called at the first check; None: nothing is suspected.
    """

    def __init__(self, make_units: Callable[[], WeightedUnits] | None, effort: Effort | None = None) -> None:
        self._make_units, self._effort = make_units, effort or Effort()
        self._units: WeightedUnits | None = None
        self._encloses = True

    @torch.no_grad()
    def suspect(
        self, first: StateDict, second: StateDict, at: float, numerators: list[Tensor] | None, limit: float
    ) -> float | None:
        """Where the loss may be above ``limit``, as a fraction (0..1, both excluded) of the chord; None: nowhere.

        Args:
            at, numerators: the losses at this fraction, a tensor a batch as in the evaluator's
                :class:`~llpf_fast.verify.evaluator.UnitLosses`; None: they are evaluated here.

        Raises:
            LLPFError: the network or the loss fails.
        """
        if self._make_units is None:
            return None
        if self._units is None:
            self._units = self._make_units()
        units, line = self._units, Polyline([first, second])
        with fixed_random_numbers(units.evaluator.device):
            if numerators is None:
                numerators = units.evaluator.with_losses(line.state(Position(0, at)))[1].numerators
            known = units.evaluator.by_unit(numerators)
            if self._encloses:
                try:
                    return self._by_enclosure(units, line, known, limit)
                except NotEnclosedError:
                    self._encloses = False
            return self._by_points(units, line, known, limit)

    def _by_enclosure(self, units: WeightedUnits, line: Polyline, known: Tensor, limit: float) -> float | None:
        effort = self._effort
        chosen = _choose(units, known, effort.hardest, effort.others)
        enclosure = _FewPieces(LossEnclosure(line, units.evaluator), effort.pieces)
        threshold = limit - _rest(units, known, chosen)
        for end in (Position(0, 0.0), Position(1, 0.0)):
            # The ends are low, as all units say. Where these say otherwise, only what is higher still is suspected.
            value = chosen.upper(enclosure.losses(end, chosen.units))
            threshold = max(threshold, value + _END_MARGIN * abs(value))
        try:
            return _inside(bisect(enclosure, [0], threshold, chosen, limits=Limits(finest=2.0**-10)).violation)
        except _EnoughError:
            return None

    def _by_points(self, units: WeightedUnits, line: Polyline, known: Tensor, limit: float) -> float | None:
        effort = self._effort
        chosen = _choose(units, known, effort.points_hardest, effort.points_others)
        part, limits = units.evaluator.on_units(chosen.units), Limits(evaluations=effort.points_evaluations)
        threshold = limit - _rest(units, known, chosen)
        points = cover_by_points(line, part, [0], threshold, chosen, seed=0, limits=limits).points
        highest = max(points, key=lambda at: (points[at].upper, at))
        return _inside(highest) if points[highest].upper > threshold else None


class _EnoughError(Exception):
    """No more pieces may be enclosed."""


class _FewPieces:
    """An enclosure of so many pieces: an :class:`~llpf_fast.verify.enclosure.bisection.Enclosure`."""

    def __init__(self, enclosure: LossEnclosure, pieces: int) -> None:
        self._enclosure, self._left = enclosure, pieces
        self.losses = enclosure.losses

    def bounds(self, waypoint: int, start: float, end: float, units: Tensor, *, precise: bool = False) -> Bounds:
        """LossEnclosure's; _EnoughError after the last piece."""
        self._left -= 1
        if self._left < 0:
            raise _EnoughError
        return self._enclosure.bounds(waypoint, start, end, units, precise=precise)


@dataclass(frozen=True)
class _Weighted(SampleChoice):
    """Chosen units whose losses count ``factors`` (float64 ``[n]``) times. No standard error: all units confirm."""

    factors: Tensor

    @property
    def weights(self) -> Tensor:
        return self.factors / self.denominator

    def _estimate(self, numerators: Tensor, errors: float, *, outward: float) -> float:
        value = float((self.weights * numerators).sum())
        return value if math.isfinite(value) else math.inf


def _choose(units: WeightedUnits, known: Tensor, hardest: int, others: int) -> _Weighted:
    """The ``hardest`` by ``known`` losses, and ``others`` at even ranks of the rest, which stand for all of it."""
    samples_each = max(1, round(units.evaluator.samples / len(known)))
    hardest, others = math.ceil(hardest / samples_each), math.ceil(others / samples_each)
    order = (units.weights * known).argsort(descending=True, stable=True)
    factors, rest = units.weights.clone(), order[hardest:]
    if len(rest) > others:
        spread = rest[(torch.arange(others) * len(rest) + len(rest) // 2) // others]
        factors[spread] *= float(units.weights[rest].sum() / units.weights[spread].sum())
        rest = spread
    chosen = torch.cat([order[:hardest], rest]).sort().values
    return _Weighted(chosen, len(chosen), 0, units.denominator, None, factors[chosen])


def _rest(units: WeightedUnits, known: Tensor, chosen: _Weighted) -> float:
    """What the loss of all is above the estimate from the ``chosen``, at the point of the ``known`` losses."""
    return units.mean(known) - chosen.upper(known[chosen.units])


def _inside(position: Position | None) -> float | None:
    return position.fraction if position is not None and position.waypoint == 0 and position.fraction > 0 else None
