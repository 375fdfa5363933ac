"""LLPF's own path, found again for the comparison."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...batches import as_data
from ...errors import LLPFError
from ...find import PathFinder, Settings, TickProgress
from ...flat.copying import copied
from ...path import RunDirectory
from ..problem import Problem
from .fit import Progress
from .found import FoundCurve

State = Mapping[str, Tensor]


class _OutOfBudgetError(Exception):
    pass


def llpf(
    problem: Problem,
    a: State,
    b: State,
    settings: Settings,
    folder: Path,
    *,
    steps: int | None = None,
    progress: Progress | None = None,
) -> FoundCurve:
    """LLPF's path between ``a`` and ``b`` with ``settings``; a run that is in ``folder`` already is continued.

    Where it has taken ``steps`` gradient steps it is stopped, and the rest of the way is straight.

    Raises:
        LLPFError: as the finder's; it got stuck or ended without arriving.
    """
    settings = replace(settings, mode="m2m")

    def watch(at: TickProgress) -> None:
        if progress is not None:
            text = f"tick {at.tick}  loss {at.loss:.4f}  distance left {at.distance:.1%}"
            progress(at.steps, max(steps or 0, at.steps), text)
        if steps is not None and at.steps >= steps and at.distance > 0:
            raise _OutOfBudgetError

    run = RunDirectory.open(folder) if (folder / "run.yaml").exists() else None
    if run is not None and not run.complete and steps is not None and _steps(run) >= steps:
        return _stopped(run, b, steps, math.nan)
    if run is None or not run.complete:
        finder = PathFinder(
            copied(problem.module, "the model"),
            dict(a),
            dict(b),
            settings=settings,
            train=as_data(problem.train),
            loss_fn=problem.loss_fn,
            device=problem.device,
            out=folder,
            progress=watch,
            resume=run is not None,
        )
        began = time.perf_counter()
        try:
            result = finder.run()
        except _OutOfBudgetError:
            return _stopped(RunDirectory.open(folder), b, steps, time.perf_counter() - began)
        if not result.arrived:
            raise LLPFError(f"LLPF ended ({result.ended}) before it arrived; its run is in {folder}")
        run = RunDirectory.open(folder)
    status = run.status or {}
    waypoints = [waypoint.load() for waypoint in run.waypoints()]
    return FoundCurve(
        "llpf",
        waypoints,
        int(status.get("sgd_steps", 0)),
        float(status.get("seconds", 0.0)),
        settings={"recipe_settings": settings.as_dict()},
    )


def _steps(run: RunDirectory) -> int:
    metrics = run.metrics()
    return int(metrics[-1]["sgd_steps"]) if metrics else 0


def _stopped(run: RunDirectory, b: State, steps: int | None, seconds: float) -> FoundCurve:
    """The waypoints of a search that was stopped, and the straight rest of the way."""
    waypoints = [waypoint.load() for waypoint in run.waypoints()]
    return FoundCurve("llpf", [*waypoints, dict(b)], _steps(run), seconds, settings={"stopped_at_steps": steps})
