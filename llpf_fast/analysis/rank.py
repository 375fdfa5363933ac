"""Rank correlation: does a prediction order things as they are, whatever its scale?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Fewer pairs than this have no rank correlation worth a number.
_FEWEST = 3


@dataclass(frozen=True)
class Rank:
    """Spearman's rho over ``count`` pairs and the two-sided p-value that scipy gives (meaningless for few pairs).

    None where it is not defined: fewer than three pairs, all values of one side equal, a value that is not finite.
    """

    rho: float | None
    p_value: float | None
    count: int


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> Rank:
    """Spearman's correlation of two sequences of equal length; ties share their mean rank."""
    count = len(predicted)
    finite = all(map(math.isfinite, [*predicted, *measured]))
    if count < _FEWEST or not finite or len({*predicted}) < 2 or len({*measured}) < 2:
        return Rank(None, None, count)
    from scipy.stats import spearmanr

    found = spearmanr(predicted, measured)
    return Rank(float(found.statistic), float(found.pvalue), count)
