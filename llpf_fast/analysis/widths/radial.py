"""The radial width: how far one can go straight away before the loss exceeds a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import LLPFError


@dataclass(frozen=True)
class RadialRule:
    """How a ray is searched; lengths are multiples of a scale (the network's norm).

    Radii ``first``, ``first * growth``, ... up to ``largest`` are tried until one is above the threshold; the interval
    before it is halved until it is narrower than ``tolerance`` of the radius. A rise above the threshold and back
    between two tries is not seen.
    """

    first: float = 0.02
    growth: float = 1.25
    largest: float = 10.0
    tolerance: float = 1e-3

    def validate(self) -> None:
        if not (0 < self.first < self.largest < math.inf and self.growth > 1 and 0 < self.tolerance < 1):
            raise LLPFError(f"a ray needs 0 < first < largest, growth above 1 and tolerance in (0, 1), got {self}")


@dataclass(frozen=True)
class RadialWidth:
    """``radius`` is infinite where the loss stayed below the threshold up to ``searched_to``.

    ``not_finite``: what stopped the ray was a loss that is NaN or infinite.
    """

    radius: float
    searched_to: float
    not_finite: bool
    evaluations: int


def radial_width(
    loss: Callable[[float], float], threshold: float, *, scale: float = 1.0, rule: RadialRule | None = None
) -> RadialWidth:
    """The smallest r > 0 with ``loss(r)`` > ``threshold``, to the precision of ``rule`` (definition: ours).

    Args:
        loss: the loss at distance r along the ray.
        scale: unit of the rule's lengths.

    Raises:
        LLPFError: a threshold that is not finite; a loss at r = 0 that is not finite, or above the threshold.
    """
    rule = rule or RadialRule()
    rule.validate()
    if not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {threshold}")
    if not 0 < scale < math.inf:
        raise LLPFError(f"the scale of the radii must be above 0 and finite, got {scale}")
    start = loss(0.0)
    if not math.isfinite(start):
        raise LLPFError(f"the network's own loss is {start}; train it again")
    if start > threshold:
        raise LLPFError(f"the network's own loss {start:.4g} is above the threshold {threshold:g}; raise the threshold")
    evaluations, low, high = 1, 0.0, rule.first * scale
    while True:
        value = loss(high)
        evaluations += 1
        if not value <= threshold:
            break
        if high >= rule.largest * scale:
            return RadialWidth(math.inf, high, False, evaluations)
        low, high = high, min(high * rule.growth, rule.largest * scale)
    stopped = value
    while high - low > rule.tolerance * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        value = loss(middle)
        evaluations += 1
        if value <= threshold:
            low = middle
        else:
            high, stopped = middle, value
    return RadialWidth((low + high) / 2, high, not math.isfinite(stopped), evaluations)
