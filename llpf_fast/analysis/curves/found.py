"""A curve that some method found, as the polyline that is judged, and as a run on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import LLPFError
from ...find.environment import describe
from ...path import RunDirectory, state_digest
from ..problem import Problem


@dataclass(frozen=True)
class FoundCurve:
    """What one method found between two networks.

    ``waypoints`` are complete state dicts on the CPU: the polyline through them is what counts, not the curve they were
    read off. ``gradient_steps`` counts forward and backward passes over one batch, ``seconds`` the whole search, its
    looks at fixed sets included. ``destination`` is "b", or "b permuted" where the path ends at the second network with
    its units in another order (the same function, another point).
    """

    method: str
    waypoints: Sequence[Mapping[str, Tensor]]
    gradient_steps: int
    seconds: float
    destination: str = "b"
    settings: dict[str, Any] = field(default_factory=dict)


def write_run(
    curve: FoundCurve, folder: str | os.PathLike[str], problem: Problem, *, threshold: float, about: Mapping[str, Any]
) -> RunDirectory:
    """``curve`` as a complete run in ``folder``, which ``llpf verify`` and every tool for runs takes like LLPF's own.

    run.yaml says with which loss, data and BatchNorm statistics the curve is judged, as a search's does.
    A run that an earlier call wrote there is replaced; anything else is left alone.

    Raises:
        LLPFError: ``folder`` holds something else, or cannot be written.
    """
    folder = Path(folder)
    if (folder / "run.yaml").exists():
        method = (RunDirectory.open(folder).run.get("settings") or {}).get("method")
        if method is None:
            raise LLPFError(f"{folder} holds a run that is no curve of llpf analyze; choose another folder")
        strangers = RunDirectory.open(folder).strangers()
        if strangers:
            raise LLPFError(f"{strangers[0]} is no file of a run, and {folder} would be replaced; move it away")
        shutil.rmtree(folder)
    first, last = curve.waypoints[0], curve.waypoints[-1]
    run = RunDirectory.create(
        folder,
        {
            "llpf_fast": 1,
            "provenance": {**about, **problem.recorded_loss()},
            "settings": {
                **{key: value for key, value in problem.about().items() if key in ("model", "data") and value},
                "mode": "m2m",
                "threshold": threshold,
                "statistics": problem.statistics[-1],
                "method": curve.method,
                **curve.settings,
            },
            "task": problem.task(),
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
