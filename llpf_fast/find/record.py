"""What a search writes: run directory, metrics, result."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..correct import CorrectionResult
from ..errors import LLPFError
from ..flat import FlatParameters
from ..ops.info import describe
from ..path import RunDirectory, state_digest
from ..path.fingerprint import digest
from ..path.run_directory import FORMAT
from ..settings import Settings
from .endpoints import Endpoints
from .resume import check_same_search, check_same_task, restore_environment
from .search_state import SearchState


@dataclass(frozen=True)
class TickProgress:
    """How far a search has come after a tick.

    Attributes:
        loss, rounds: mean loss at the end of the tick's correction, and its gradient steps.
        steps, seconds: gradient steps and time of the whole search.
        distance: share of the start's distance that is left (toward infinity: the norm's growth).
    """

    tick: int
    max_ticks: int
    loss: float
    rounds: int
    steps: int
    distance: float
    seconds: float


@dataclass(frozen=True)
class FindResult:
    """What a search did.

    Attributes:
        ticks, sgd_steps, seconds: of the whole search, sessions before a resume included.
        ended: "arrived", "max_ticks", or "stuck": with adaptive pacing even the smallest step failed.
        waypoints: how many were recorded.
        notes: limits of the result, a line each: layers of norm 0, from which no norm sphere can be reached.
        mending: what a resume of a complete run did about its certificate, or why nothing; empty where that has nothing
            against the path.
    """

    folder: Path
    ticks: int
    sgd_steps: int
    seconds: float
    ended: str
    waypoints: int
    notes: tuple[str, ...] = ()
    mending: str = ""

    @property
    def arrived(self) -> bool:
        return self.ended == "arrived"


_DIGESTS = ("start_sha256", "destination_sha256", "sphere_sha256")


class Record:
    """The run directory of one search, new or continued.

    Args:
        out: the folder; a new temporary one when missing.
        resume: continue the run that ``out`` holds.
        provenance: plain values for run.yaml.
        parallel: how many paths are searched at once.
        task: what run.yaml records of loss and data (:class:`~.task.Task`).
        progress: called after every tick.

    Raises:
        LLPFError: a folder that is in use, or that holds another search than this one.
    """

    def __init__(
        self,
        settings: Settings,
        endpoints: Endpoints,
        device: torch.device,
        *,
        out: str | os.PathLike[str] | None,
        resume: bool,
        provenance: dict[str, Any] | None,
        parallel: int = 1,
        task: dict[str, Any] | None = None,
        progress: Callable[[TickProgress], None] | None = None,
    ) -> None:
        self._settings, self._endpoints, self._progress = settings, endpoints, progress
        self._began = time.monotonic()
        run: dict[str, Any] = {
            "llpf_fast": FORMAT,
            "provenance": provenance or {},
            "settings": settings.as_dict(),
            "goal": settings.goal,
            "environment": describe(device, parallel),
            "task": {**(task or {}), "settings_sha256": digest(settings.as_dict())},
            "start_sha256": state_digest(endpoints.start),
        }
        if endpoints.destination is not None:
            name = "destination" if settings.goal == "model" else "sphere"
            run[f"{name}_sha256"] = state_digest(endpoints.destination)
        self.resumed = resume
        if not resume:
            folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="llpf-"))
            self.run = RunDirectory.create(folder, run)
            self.run.add_waypoint(0, endpoints.start)
            return
        if out is None:
            raise LLPFError("resume needs the folder of the run to continue")
        self.run = RunDirectory.open(out)
        check_same_search(self.run.run.get("settings"), settings.as_dict(), self.run.folder)
        check_same_task(self.run.run.get("task"), run["task"], self.run.folder)
        for key in _DIGESTS:
            if self.run.run.get(key) != run.get(key):
                raise LLPFError(f"cannot resume {self.run.folder}: its {key} differ from those given now")
        restore_environment(self.run.run.get("environment", {}), device, parallel)

    @property
    def complete(self) -> bool:
        return self.run.complete

    def restart(self) -> None:
        """Go back to the start: the run was stopped before its first checkpoint."""
        self.run.truncate(waypoints=1, metrics=0)
        if not self.run.waypoints():
            self.run.add_waypoint(0, self._endpoints.start)

    def start_clock(self) -> None:
        """Start the clock of this session; the time before is in ``SearchState.seconds``."""
        self._began = time.monotonic()

    def seconds(self, state: SearchState) -> float:
        """Time spent in the whole search."""
        return state.seconds + time.monotonic() - self._began

    def add_waypoint(self, state: SearchState, flat: FlatParameters) -> None:
        """Record the present values and buffers as the waypoint of the last accepted tick."""
        self.run.add_waypoint(state.accepted_tick, flat.state_dict(copied=False))
        state.recorded_tick = state.accepted_tick

    def add_tick(
        self,
        state: SearchState,
        corrected: CorrectionResult,
        *,
        step: list[float],
        stage: int,
        share_left: float,
        rolled_back: bool,
    ) -> None:
        """Write one line of metrics and call ``progress``."""
        record = {
            "tick": state.tick,
            "loss": corrected.loss,
            "rounds": corrected.steps,
            "met": corrected.met,
            "sgd_steps": state.sgd_steps,
            "distance": state.distance,
            "distances": [round(v, 9) for v in state.distances],
            "variances": [float(f"{v:.9g}") for v in state.variances],
            "step": step,
            "stage": stage,
            "lr": self._settings.correction.lr,
        }
        if rolled_back:
            record["rolled_back"] = True
        self.run.append_metrics(record)
        if self._progress:
            most = self._settings.max_ticks
            loss, steps, total = corrected.loss, corrected.steps, state.sgd_steps
            self._progress(TickProgress(state.tick, most, loss, steps, total, share_left, self.seconds(state)))

    def finish(self, state: SearchState, ended: str, end: dict[str, Tensor] | None, notes: list[str]) -> None:
        """Close the run; ``end`` is the last waypoint where the search has arrived, ``notes`` a line each."""
        if end is not None:
            self.run.add_waypoint(state.tick + 1, end)
        # No checkpoint here: if the process were killed before the run is closed, a resume from it would tick on beyond
        # the destination. Without it that costs the ticks since the last checkpoint.
        self.run.finish(
            arrived=ended == "arrived",
            ended=ended,
            ticks=state.tick,
            sgd_steps=state.sgd_steps,
            seconds=self.seconds(state),
            distance=state.distance,
            loss=state.loss,
            **({"notes": notes} if notes else {}),
        )

    def result(self, mending: str = "") -> FindResult:
        """The result of a complete run; see :class:`FindResult` for ``mending``."""
        done = self.run.status or {}
        arrived = bool(done.get("arrived"))
        return FindResult(
            self.run.folder,
            int(done["ticks"]),
            int(done["sgd_steps"]),
            float(done["seconds"]),
            str(done.get("ended") or ("arrived" if arrived else "max_ticks")),
            len(self.run.waypoints()),
            tuple(done.get("notes") or ()),
            mending,
        )
