"""The fit of a curve between two networks, and what was measured on it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batches.sampling import random_bits, round_key
from ..errors import LLPFError
from ..find.curve import Curve, point
from ..ops.info import describe
from ..path import RunDirectory, state_digest
from ..path.fingerprint import digest
from ..path.run_directory import FORMAT
from ..types import ProgressCallback
from .problem import Problem

#: (vector [P], round) -> loss and gradient [P] on that round's batch.
Gradient = Callable[[Tensor, int], tuple[float, Tensor]]

#: Separates the draws of t from those of batches (0) and augmentation (1).
_STREAM = 2


@dataclass(frozen=True)
class FitSettings:
    """How a curve is fitted: ``steps`` gradient steps of SGD on the inner nodes.

    Rate and momentum are those of the authors' code, as is the schedule: constant for half the steps, then
    falling linearly to a hundredth at nine tenths, and constant again. Their weight decay on the curve's points is 0
    here unless set: it is no part of the loss that is compared.
    """

    steps: int
    lr: float = 0.015
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise LLPFError(f"a curve must be fitted for at least 1 gradient step, got {self.steps}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise LLPFError(f"the curve's learning rate must be a positive number, got {self.lr}")


def fit(
    curve: Curve,
    nodes: Tensor,
    gradient: Gradient,
    settings: FitSettings,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Inner nodes that minimise E_t L(theta(t)), t uniform in [0, 1]; the endpoints are unchanged, bit for bit.

    Each gradient step draws one t and one batch; d theta / d node_i = w_i(t), so the step costs what a step of ordinary
    training costs, and two operations a node.

    Args:
        nodes: ``[nodes, P]``, where to begin; not changed.

    Returns:
        ``[nodes, P]``.

    Raises:
        LLPFError: the loss stops being finite.
    """
    inner = nodes.clone()
    velocity = torch.zeros_like(inner)
    index = torch.zeros(1, dtype=torch.int64)
    for step in range(settings.steps):
        t = (int(random_bits(round_key(settings.seed, 0, step, _STREAM), index)) + 0.5) / 2**32
        theta = point(curve, inner, t)
        loss, slope = gradient(theta, step)
        if not math.isfinite(loss):
            raise LLPFError(
                f"fitting the curve diverged after {step} steps (loss {loss}); lower its learning rate ({settings.lr})"
            )
        if settings.weight_decay:
            slope = slope.add(theta, alpha=settings.weight_decay)
        rate = settings.lr * _rate(step / settings.steps)
        for i, weight in list(enumerate(curve.weights(t)))[1:-1]:
            velocity[i].mul_(settings.momentum)
            if weight:
                velocity[i].add_(slope, alpha=weight)
            inner[i].sub_(velocity[i], alpha=rate)
        if progress is not None:
            progress(step + 1, settings.steps, f"loss {loss:.4f}")
    return inner


def _rate(done: float) -> float:
    """Share of the learning rate after the share ``done`` of the steps."""
    if done <= 0.5:
        return 1.0
    return max(0.01, 1.0 - (done - 0.5) / 0.4 * 0.99)


@dataclass(frozen=True)
class CurveResult:
    """A curve between two networks, and what it cost.

    ``waypoints`` are complete state dicts on the CPU; the polyline through them is certified, not the smooth curve.
    ``gradient_steps`` counts forward and backward passes over one batch, ``seconds`` the whole search with its
    evaluations on fixed sets. ``destination`` is "b", or "b permuted" where the path ends at the second network with
    its units in another order (the same function, another point).
    """

    method: str
    waypoints: Sequence[Mapping[str, Tensor]]
    gradient_steps: int
    seconds: float
    destination: str = "b"
    settings: dict[str, Any] = field(default_factory=dict)


def write_run(
    curve: CurveResult, folder: str | os.PathLike[str], problem: Problem, *, threshold: float, about: Mapping[str, Any]
) -> RunDirectory:
    """``curve`` as a complete run in ``folder``, which ``llpf verify`` and every tool for runs takes.

    run.yaml has the loss, data and BatchNorm statistics that the curve is verified with, as a search's has.
    A run that an earlier call wrote there is replaced; anything else is left alone.

    Raises:
        LLPFError: ``folder`` contains something else, or cannot be written.
    """
    folder = Path(folder)
    if (folder / "run.yaml").exists():
        method = (RunDirectory.open(folder).run.get("settings") or {}).get("method")
        if method is None:
            raise LLPFError(f"{folder} contains a run that is no curve of llpf analyze; choose another folder")
        strangers = RunDirectory.open(folder).foreign_files()
        if strangers:
            raise LLPFError(f"{strangers[0]} is no file of a run, and {folder} would be replaced; move it away")
        shutil.rmtree(folder)
    first, last = curve.waypoints[0], curve.waypoints[-1]
    settings = {
        **{key: value for key, value in problem.about().items() if key in ("model", "data") and value},
        "mode": "m2m",
        "threshold": threshold,
        "statistics": problem.statistics[-1],
        "method": curve.method,
        **curve.settings,
    }
    run = RunDirectory.create(
        folder,
        {
            "llpf_fast": FORMAT,
            "provenance": {**about, **problem.recorded_loss()},
            "settings": settings,
            "goal": "model",
            "task": {**problem.task(), "settings_sha256": digest(settings)},
            "environment": describe(problem.device),
            "start_sha256": state_digest(first),
            "destination_sha256": state_digest(last),
        },
    )
    for number, waypoint in enumerate(curve.waypoints):
        run.add_waypoint(number, waypoint)
    run.finish(
        arrived=True,
        ended="arrived",
        ticks=len(curve.waypoints) - 1,
        sgd_steps=curve.gradient_steps,
        seconds=curve.seconds,
    )
    return run
