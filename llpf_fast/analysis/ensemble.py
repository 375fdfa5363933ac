"""Ensembles and weight averages of waypoints, beside the endpoints of the run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batches.fixed_samples import sample_count
from ..batches.forward import forward
from ..batches.loss import LossReduction, batch_loss, is_classification
from ..batches.precision import float32_products, loss_in
from ..errors import LLPFError
from ..path import state_digest
from ..path.fingerprint import code_digest
from ..types import ProgressCallback
from .networks import Networks, load_state
from .problem import Problem
from .sharpness import sample_waypoints


@dataclass(frozen=True)
class EnsembleAlong:
    """``rows``: loss and accuracy on the test set of what is compared; ``members``: those of each waypoint."""

    rows: list[dict[str, Any]]
    members: list[dict[str, Any]]
    settings: dict[str, Any]


def ensemble_along(
    problem: Problem, folder: str | os.PathLike[str], *, points: int = 9, progress: ProgressCallback | None = None
) -> EnsembleAlong:
    """Weight average and ensemble of waypoints of the run in ``folder`` beside its endpoints.

    Rows: first, last; the mean member; ensemble and weight average of the two endpoints; ensemble and weight average
    of all chosen waypoints. An ensemble of classifiers (logits ``[B, C, ...]`` against whole numbers) averages
    probabilities (its loss is that of their logarithm), any other averages outputs. BatchNorm statistics of an average
    are re-estimated from training data. ``disagreement`` is the share of test samples on which two members give
    different classes, averaged over pairs.

    Raises:
        LLPFError: not a run, no path yet; no test set; the run is of another architecture; a network that does not
            return one tensor.
    """
    names = {name for name, _ in problem.module.named_parameters()}
    chosen = sample_waypoints(folder, names, points)
    samples = sample_count(problem.samples("test"))
    states = [dict(each.load()) for each in chosen]
    networks = Networks(states, [f"waypoint {each.waypoint.index}" for each in chosen], problem.module)

    def compute() -> dict[str, Any]:
        return _measured(problem, networks, progress)

    key = {
        "what": "ensemble",
        "states": [state_digest(state) for state in states],
        "training": problem.identity("train"),
        "code": code_digest(EnsembleAlong),
    }
    evaluation = problem.cached_numbers(key, compute, "test")
    members = [
        {"waypoint": each.waypoint.index, "arc": each.arc, "norm_share": each.norm_share, **measured}
        for each, measured in zip(chosen, evaluation["members"], strict=True)
    ]
    return EnsembleAlong(evaluation["rows"], members, {"members": len(chosen), "test_samples": samples})


def _measured(problem: Problem, networks: Networks, progress: ProgressCallback | None) -> dict[str, Any]:
    count = len(networks)
    predictions = _Predictions(problem)
    outputs = []
    for number, state in enumerate(networks):
        outputs.append(predictions.of(state))
        if progress is not None:
            progress(number + 1, count, networks.names[number])
    members = [predictions.evaluate(output) for output in outputs]
    endpoints = [outputs[0], outputs[-1]]
    statistics = "reestimated" if problem.has_statistics else "stored"
    evaluator = problem.evaluator("test", statistics=statistics)  # type: ignore[arg-type]

    def average(*indices: int) -> dict[str, float | None]:
        chosen = networks.select(*indices)
        evaluation = evaluator(chosen.combine([1 / len(chosen)] * len(chosen)))
        return {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}

    rows = [
        {"what": "first", "networks": 1, **members[0]},
        {"what": "last", "networks": 1, **members[-1]},
        {"what": "mean member", "networks": 1, **_mean(members)},
        {"what": "ensemble of the endpoints", "networks": 2, **predictions.evaluate(predictions.combine(endpoints))},
        {"what": "weight average of the endpoints", "networks": 2, **average(0, count - 1)},
        {"what": "ensemble of waypoints", "networks": count, **predictions.evaluate(predictions.combine(outputs))},
        {"what": "weight average of waypoints", "networks": count, **average(*range(count))},
    ]
    if predictions.classification:
        rows[3]["disagreement"] = _disagreement(endpoints)
        rows[5]["disagreement"] = _disagreement(outputs)
    return {"rows": rows, "members": members}


class _Predictions:
    """Outputs on the test set, one network at a time: a tensor ``[B, ...]`` a batch, float64."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._module = problem.copy().eval().requires_grad_(False)
        self._samples = problem.fixed(problem.samples("test"))
        self._loss_fn = loss_in(problem.loss_fn, problem.device, torch.float64)
        self._reduction = LossReduction(self._loss_fn)
        self._shares = self._samples.shares(self._reduction)
        inputs, targets, _ = self._samples.batches[0]
        output = self._output(inputs)
        self.classification = is_classification(output, targets)
        #: Whether accuracy is reported, by the evaluator's rule.
        self._counts_hits = self.classification and output.dim() == 2

    def of(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        if self._problem.usual_statistics == "reestimated":
            (state,) = self._problem.reestimated([state])
        load_state(self._module, state)
        return [self._output(inputs).double() for inputs, _, _ in self._samples]

    def _output(self, inputs: Any) -> Tensor:
        with (
            torch.set_grad_enabled(self._problem.mode.gradients),
            float32_products("float32", self._problem.device),
        ):
            output = forward(self._module, inputs)
        if not isinstance(output, Tensor):
            raise LLPFError(
                f"ensembles need networks that return one tensor, this one returns a {type(output).__name__}"
            )
        return output.detach()

    def combine(self, members: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The ensemble's outputs: the mean; for classifiers the logarithm of the mean probability."""
        if not self.classification:
            return [torch.stack(batch).mean(0) for batch in zip(*members, strict=True)]
        # A probability that rounds to 0 would make the loss infinite; in float64 that takes logits of 700.
        return [
            torch.stack([output.softmax(1) for output in batch]).mean(0).clamp_min(1e-300).log()
            for batch in zip(*members, strict=True)
        ]

    @torch.no_grad()
    def evaluate(self, outputs: Sequence[Tensor]) -> dict[str, float | None]:
        """Loss and accuracy of the set, formed like the evaluator's."""
        loss, hits, labels = 0.0, 0, 0
        for (_, targets, _), output, share in zip(self._samples, outputs, self._shares, strict=True):
            if not share:
                continue
            wide = targets.double() if isinstance(targets, Tensor) and targets.is_floating_point() else targets
            loss += share * float(batch_loss(self._loss_fn, output, wide))
            if self._counts_hits:
                labelled = self._reduction.labelled(targets)
                hits += int(((output.argmax(1) == targets) & labelled).sum())
                labels += int(labelled.sum())
        return {"test_loss": loss, "test_accuracy": hits / labels if labels else None}


def _mean(members: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in ("test_loss", "test_accuracy"):
        values = [value for member in members if (value := member[name]) is not None]
        means[name] = math.fsum(values) / len(values) if values else None
    return means


def _disagreement(members: Sequence[Sequence[Tensor]]) -> float:
    classes = [torch.cat([output.argmax(1).flatten() for output in outputs]) for outputs in members]
    pairs = [(i, j) for i in range(len(classes)) for j in range(i)]
    return math.fsum(float((classes[i] != classes[j]).double().mean()) for i, j in pairs) / len(pairs)
