"""Loss barriers of a line by the three definitions in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LLPFError

#: Frankle et al. (arXiv 1912.05671) call a pair stable where the error barrier is below about 2 %.
STABLE_ERROR = 0.02


@dataclass(frozen=True)
class Barrier:
    """How far a value f rises above its ends on the line from network 1 (fraction 0) to network 2 (fraction 1).

    ``frankle``: max_a f(a) - (f1 + f2) / 2 (linear mode connectivity, arXiv 1912.05671);
    ``entezari``: max_a [f(a) - ((1 - a) f1 + a f2)] (arXiv 2110.06296), reached at fraction ``at``;
    ``midpoint``: f(1/2) - (f1 + f2) / 2.
    The maxima run over the points measured, ends included, so ``entezari`` is never negative and ``frankle`` never
    below |f1 - f2| / 2. NaN where a value that counts is NaN.
    """

    frankle: float
    entezari: float
    midpoint: float
    at: float


def barrier(fractions: Sequence[float], values: Sequence[float]) -> Barrier:
    """The barrier of ``values [n]`` at ``fractions [n]``, rising from 0 to 1 and with 1/2 among them.

    Raises:
        LLPFError: other fractions, or other numbers of them than of values.
    """
    if len(fractions) != len(values):
        raise LLPFError(f"{len(fractions)} fractions but {len(values)} values")
    if not fractions or fractions[0] != 0 or fractions[-1] != 1 or 0.5 not in fractions:
        raise LLPFError("a barrier needs values at fractions 0, 1/2 and 1")
    first, last = values[0], values[-1]
    mean = (first + last) / 2
    middle = values[list(fractions).index(0.5)] - mean
    if any(map(math.isnan, values)) or not (math.isfinite(first) and math.isfinite(last)):
        return Barrier(math.nan, math.nan, middle, math.nan)
    above = [value - ((1 - a) * first + a * last) for a, value in zip(fractions, values, strict=True)]
    highest = max(range(len(above)), key=above.__getitem__)
    return Barrier(max(values) - mean, above[highest], middle, fractions[highest])


def line_fractions(points: int) -> list[float]:
    """``points`` equally spaced fractions from 0 to 1; 1/2 is added where it is not among them.

    LLPFError for fewer than three.
    """
    if points < 3:
        raise LLPFError(f"points must be at least 3 (both ends and the middle), got {points}")
    return sorted({*(i / (points - 1) for i in range(points)), 0.5})
