"""Loss and error of a state on training and test set, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import require
from ..types import StateDict
from ..verify.evaluator import Statistics
from .problem import Problem, Split


class Measures:
    """state dict -> ``train_loss``, ``train_error``, ``test_loss``, ``test_error``, as far as they exist.

    Errors are 1 - accuracy, for classification; test values where the problem has a test set.
    """

    def __init__(self, problem: Problem, statistics: Statistics = "stored") -> None:
        splits: list[Split] = ["train"] if problem.test is None else ["train", "test"]
        self._evaluators = {split: problem.evaluator(split, statistics=statistics) for split in splits}

    def __call__(self, state: StateDict) -> dict[str, float]:
        values = {}
        for split, evaluator in self._evaluators.items():
            evaluation = evaluator(state)
            values[f"{split}_loss"] = evaluation.loss
            if evaluation.accuracy is not None:
                values[f"{split}_error"] = 1 - evaluation.accuracy
        return values


#: Fewer pairs than this get no rank correlation.
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
    test = require("scipy.stats", "a rank correlation").spearmanr(predicted, measured)
    return Rank(float(test.statistic), float(test.pvalue), count)
