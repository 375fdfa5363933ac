"""What a search writes: run folder, metrics, results."""

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
from ..modes import leads_to_model
from ..path import RunDirectory, state_digest
from ..path.fingerprint import digest
from ..path.run_directory import FORMAT
from ..settings import Settings
from . import resume as environment
from .endpoints import Endpoints
from .resume import check_same_search, check_same_task
from .search_state import SearchState


@dataclass(frozen=True)
class TickProgress:
    """Where a search stands.

    ``distance`` is the share of the start's distance that is left (toward infinity: the norm's growth), ``steps`` the
    gradient steps of the whole search, ``seconds`` the time spent in it.
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
    """What a search did. ``sgd_steps`` and ``ticks`` count the whole search, ``seconds`` the time spent in it.

    ``ended`` is "arrived", "max_ticks", or "stuck": with adaptive pacing even the smallest step failed. ``notes`` are
    what a reader must know besides, a line each: layers of norm 0, which no norm sphere can be reached from.
    """

    folder: Path
    ticks: int
    sgd_steps: int
    seconds: float
    ended: str
    waypoints: int
    notes: tuple[str, ...] = ()

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
        together: how many paths are searched at once.
        task: what run.yaml says of loss and data (:class:`~.build.Task`).
        progress: called after every tick.

    Raises:
        LLPFError: a folder that is in use, or that holds another search than this one.
    """

    def __init__(
        self,
        settings: Settings,
        ends: Endpoints,
        device: torch.device,
        *,
        out: str | os.PathLike[str] | None,
        resume: bool,
        provenance: dict[str, Any] | None,
        together: int = 1,
        task: dict[str, Any] | None = None,
        progress: Callable[[TickProgress], None] | None = None,
    ) -> None:
        self._settings, self._ends, self._progress = settings, ends, progress
        self._began = time.monotonic()
        about: dict[str, Any] = {
            "llpf_fast": FORMAT,
            "provenance": provenance or {},
            "settings": settings.as_dict(),
            "environment": environment.describe(device, together),
            "task": {**(task or {}), "settings_sha256": digest(settings.as_dict())},
            "start_sha256": state_digest(ends.start),
        }
        if ends.end is not None:
            name = "destination" if leads_to_model(settings) else "sphere"
            about[f"{name}_sha256"] = state_digest(ends.end)
        #: Whether there is something to go on from.
        self.resumed = resume
        if not resume:
            folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="llpf-"))
            self.run = RunDirectory.create(folder, about)
            self.run.add_waypoint(0, ends.start)
            return
        if out is None:
            raise LLPFError("resume needs the folder of the run to continue")
        self.run = RunDirectory.open(out)
        check_same_search(self.run.run.get("settings"), settings.as_dict(), self.run.folder)
        check_same_task(self.run.run.get("task"), about["task"], self.run.folder)
        for key in _DIGESTS:
            if self.run.run.get(key) != about.get(key):
                raise LLPFError(f"cannot resume {self.run.folder}: its {key} differ from those given now")
        environment.restore(self.run.run.get("environment", {}), device, together)

    @property
    def complete(self) -> bool:
        return self.run.complete

    def begin_again(self) -> None:
        """Back to the start: a run that was stopped before its first checkpoint."""
        self.run.truncate(waypoints=1, metrics=0)
        if not self.run.waypoints():
            self.run.add_waypoint(0, self._ends.start)

    def begin(self) -> None:
        """The clock of this session starts: what came before is in ``Standing.seconds``."""
        self._began = time.monotonic()

    def seconds(self, at: SearchState) -> float:
        """Time spent in the whole search."""
        return at.seconds + time.monotonic() - self._began

    def waypoint(self, at: SearchState, flat: FlatParameters, values: Tensor) -> None:
        """Record ``values [N]`` and the present buffers as the waypoint of the tick ``at.point``."""
        self.run.add_waypoint(at.point, flat.state_dict(values, copied=False))
        at.recorded = at.point

    def tick(
        self,
        at: SearchState,
        corrected: CorrectionResult,
        *,
        step: list[float],
        stage: int,
        share_left: float,
        rolled_back: bool,
    ) -> None:
        """One line of metrics, and a call of ``progress``."""
        record = {
            "tick": at.tick,
            "loss": corrected.loss,
            "rounds": corrected.rounds,
            "met": corrected.met,
            "sgd_steps": at.rounds,
            "distance": at.distance,
            "distances": [round(v, 9) for v in at.distances],
            "variances": [float(f"{v:.9g}") for v in at.variances],
            "step": step,
            "stage": stage,
            "lr": self._settings.correction.lr,
        }
        if rolled_back:
            record["rolled_back"] = True
        self.run.append_metrics(record)
        if self._progress:
            most = self._settings.max_ticks
            loss, rounds = corrected.loss, corrected.rounds
            self._progress(TickProgress(at.tick, most, loss, rounds, at.rounds, share_left, self.seconds(at)))

    def finish(self, at: SearchState, ended: str, end: dict[str, Tensor] | None, notes: list[str]) -> None:
        """Close the run; ``end`` is the destination to record where the search has arrived, ``notes`` a line each."""
        if end is not None:
            self.run.add_waypoint(at.tick + 1, end)
        # No checkpoint here: one that counts the destination would, after a kill just before finish, let a resume tick
        # on beyond it. Such a kill costs the ticks since the last checkpoint.
        self.run.finish(
            arrived=ended == "arrived",
            ended=ended,
            ticks=at.tick,
            sgd_steps=at.rounds,
            seconds=self.seconds(at),
            distance=at.distance,
            loss=at.loss,
            **({"notes": notes} if notes else {}),
        )

    def result(self) -> FindResult:
        """Of a complete run."""
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
        )
