"""What waypoints are worth together: averages of their weights, ensembles of their predictions."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...batches import FixedSamples, TensorData
from ...batches.forward import forward
from ...errors import LLPFError
from ...path import state_digest
from ..cache import cached_numbers
from ..networks import Networks
from ..problem import Problem
from .waypoints import choose

#: (networks done, networks in all, text)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EnsembleAlong:
    """``rows``: what is compared, on the test set; ``members``: each waypoint that took part."""

    rows: list[dict[str, Any]]
    members: list[dict[str, Any]]
    settings: dict[str, Any]


def ensemble_along(
    problem: Problem, folder: str | os.PathLike[str], *, points: int = 9, progress: Progress | None = None
) -> EnsembleAlong:
    """Weight average and ensemble of waypoints of the run in ``folder`` beside its two ends.

    Rows: first, last; the mean member; ensemble and weight average of the two ends alone; ensemble and weight average
    of all chosen waypoints. An ensemble of classifiers averages probabilities (its loss is that of their logarithm),
    any other averages outputs. BatchNorm statistics of an average are re-estimated from training data. ``disagreement``
    is the share of test samples on which two members of different places give different classes, averaged over pairs.

    Raises:
        LLPFError: not a run, no path yet; no test set; the run is of another architecture.
    """
    names = {name for name, _ in problem.module.named_parameters()}
    chosen = choose(folder, names, points)
    inputs, targets = problem.samples("test")
    states = [dict(each.load()) for each in chosen]
    networks = Networks(states, [f"waypoint {each.waypoint.index}" for each in chosen], problem.module)

    def compute() -> dict[str, Any]:
        return _measured(problem, networks, inputs, targets, progress)

    identity = problem.identity("test")
    if problem.cache is None or identity is None:
        found = compute()
    else:
        key = {
            "what": "ensemble",
            "states": [state_digest(state) for state in states],
            "problem": {**identity, "training": problem.identity("train")},
            "device": str(problem.device),
        }
        found = cached_numbers(key, problem.cache, compute)
    members = [
        {"waypoint": each.waypoint.index, "arc": each.arc, "norm_share": each.norm_share, **measured}
        for each, measured in zip(chosen, found["members"], strict=True)
    ]
    return EnsembleAlong(found["rows"], members, {"members": len(chosen), "test_samples": len(targets)})


def _measured(
    problem: Problem, networks: Networks, inputs: Tensor, targets: Tensor, progress: Progress | None
) -> dict[str, Any]:
    count = len(networks)
    said = _Predictions(problem, inputs, targets)
    outputs = []
    for number, state in enumerate(networks):
        outputs.append(said.of(state))
        if progress is not None:
            progress(number + 1, count, networks.names[number])
    members = [said.judge(output) for output in outputs]
    ends = [outputs[0], outputs[-1]]
    statistics = "reestimated" if problem.has_statistics else "stored"
    evaluate = problem.evaluator("test", statistics=statistics)  # type: ignore[arg-type]

    def average(*indices: int) -> dict[str, float | None]:
        chosen = networks.select(*indices)
        found = evaluate(chosen.combine([1 / len(chosen)] * len(chosen)))
        return {"test_loss": found.loss, "test_accuracy": found.accuracy}

    rows = [
        {"what": "first", "networks": 1, **members[0]},
        {"what": "last", "networks": 1, **members[-1]},
        {"what": "mean member", "networks": 1, **_mean(members)},
        {"what": "ensemble of the ends", "networks": 2, **said.judge(said.together(ends))},
        {"what": "weight average of the ends", "networks": 2, **average(0, count - 1)},
        {"what": "ensemble of waypoints", "networks": count, **said.judge(said.together(outputs))},
        {"what": "weight average of waypoints", "networks": count, **average(*range(count))},
    ]
    if said.classification:
        rows[3]["disagreement"] = _disagreement(ends)
        rows[5]["disagreement"] = _disagreement(outputs)
    return {"rows": rows, "members": members}


class _Predictions:
    """Outputs on the test set, one network at a time; for classifiers probabilities ``[n, classes]``, float64."""

    def __init__(self, problem: Problem, inputs: Tensor, targets: Tensor) -> None:
        self._problem = problem
        self._module = copy.deepcopy(problem.module).to(problem.device).eval()
        self._samples = FixedSamples(TensorData(inputs, targets), batch_size=250, device=problem.device)
        self._targets = targets.to(problem.device)
        whole = not targets.is_floating_point() and targets.dim() == 1
        with torch.no_grad():
            output = forward(self._module, next(iter(self._samples))[0])
        if not isinstance(output, Tensor):
            raise LLPFError(
                f"ensembles need networks that return one tensor, this one returns a {type(output).__name__}"
            )
        self.classification = whole and output.dim() == 2 and output.shape[1] > 1

    @torch.no_grad()
    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        self._module.load_state_dict(dict(state))
        output = torch.cat([forward(self._module, value) for value, _, _ in self._samples]).double()
        return output.softmax(1) if self.classification else output

    @staticmethod
    def together(outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(outputs)).mean(0)

    def judge(self, output: Tensor) -> dict[str, float | None]:
        if not self.classification:
            return {"test_loss": float(self._problem.loss_fn(output.float(), self._targets)), "test_accuracy": None}
        # A probability that rounds to 0 would make the loss infinite; float64 keeps it above that for logits of 700.
        logits = output.clamp_min(1e-300).log()
        accuracy = float((output.argmax(1) == self._targets).double().mean())
        return {"test_loss": float(self._problem.loss_fn(logits, self._targets)), "test_accuracy": accuracy}


def _mean(members: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("test_loss", "test_accuracy"):
        values = [value for member in members if (value := member[name]) is not None]
        found[name] = math.fsum(values) / len(values) if values else None
    return found


def _disagreement(outputs: Sequence[Tensor]) -> float:
    classes = [output.argmax(1) for output in outputs]
    pairs = [(i, j) for i in range(len(classes)) for j in range(i)]
    return math.fsum(float((classes[i] != classes[j]).double().mean()) for i, j in pairs) / len(pairs)
