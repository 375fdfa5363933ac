"""Loss and error of a state on the training and the test set, by name."""

from __future__ import annotations

from collections.abc import Callable

from ..verify.evaluate import Statistics
from .networks import State
from .problem import Problem, Split

#: (done, expected, what is being done)
Progress = Callable[[int, int, str], None]


class Measures:
    """state dict -> ``train_loss``, ``train_error``, ``test_loss``, ``test_error``, as far as they are known.

    Errors are 1 - accuracy, where it is classification; test values where the problem has a test set.
    """

    def __init__(self, problem: Problem, statistics: Statistics = "stored") -> None:
        splits: list[Split] = ["train"] if problem.test is None else ["train", "test"]
        self._evaluators = {split: problem.evaluator(split, statistics=statistics) for split in splits}

    def __call__(self, state: State) -> dict[str, float]:
        found = {}
        for split, evaluator in self._evaluators.items():
            evaluation = evaluator(state)
            found[f"{split}_loss"] = evaluation.loss
            if evaluation.accuracy is not None:
                found[f"{split}_error"] = 1 - evaluation.accuracy
        return found
