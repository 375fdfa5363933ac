"""The waypoints of a run: their files and the index that vouches for them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LLPFError
from .atomic import is_temporary, sync_file, sync_folder, write_bytes, writing
from .checkpoint import Mark
from .json_lines import JsonLines
from .plain import plain
from .set_aside import SetAside
from .state import differences, encode_state, shapes
from .waypoint import OWN_KEYS, Waypoint, is_waypoint_file, waypoint_name


class WaypointStore:
    """``waypoints/`` and ``waypoints.jsonl`` of the run in ``folder``.

    A file is written under a temporary name and renamed, then its line is appended: a kill -9 leaves at most files
    without a line, never a line without its file. Neither is fsynced then (4 ms a waypoint on a busy disk; a resume
    does not trust what came after its checkpoint); ``sync`` does it for all, before anything that must outlive a power
    failure refers to them.
    """

    def __init__(self, folder: Path, set_aside: SetAside) -> None:
        self.folder = folder / "waypoints"
        self.index = JsonLines(folder / "waypoints.jsonl")
        self._set_aside = set_aside
        self._known: list[Waypoint] | None = None
        self._shapes: dict[str, list[int]] | None = None
        self._unsynced: list[Path] = []

    def all(self) -> list[Waypoint]:
        if self._known is None:
            records = self.index.read()
            self._known = [
                Waypoint.from_record(record, number, self.folder, self.index.path)
                for number, record in enumerate(records)
            ]
        return self._known

    def add(self, tick: int, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> Waypoint:
        own = [key for key in info if key in OWN_KEYS]
        if own:
            raise ValueError(f"waypoint info may not be called {own[0]!r}: the index uses that name")
        known = self.all()
        data = encode_state(state)
        self._check_shapes(data, f"waypoint {len(known)}")
        path = self.folder / waypoint_name(len(known))
        waypoint = Waypoint(len(known), int(tick), path, hashlib.sha256(data).hexdigest(), plain(info))
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        write_bytes(path, data, durable=False)
        try:
            self.index.append(waypoint.record())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        known.append(waypoint)
        self._unsynced.append(path)
        return waypoint

    def _check_shapes(self, data: bytes, name: str) -> None:
        known = self.all()
        if self._shapes is None:
            if not known:
                self._shapes = shapes(data, name)
                return
            self._shapes = shapes(known[0].read(), known[0].path)
        said = differences(self._shapes, shapes(data, name), "waypoint 0", name)
        if said:
            raise LLPFError(f"{name} of {self.folder.parent} is of another architecture: {said}")

    def cut(self, keep: int, mark: Mark | None) -> None:
        """Drop all but the first ``keep`` waypoints; those that the checkpoint of ``mark`` needs are set aside.

        The order is what makes a kill -9 at any line harmless: the list of what to bring back, then the index, then the
        files.
        """
        lines = self.index.lines()
        if keep < len(lines):
            moved: list[Path] = []
            if mark is not None:
                first, kept = self._set_aside.read(mark.serial) or (mark.waypoints, [])
                if not kept:
                    self._set_aside.clear()
                if keep < first:
                    self._set_aside.write(mark.serial, keep, lines[keep:first] + kept)
                    moved = [self.folder / waypoint_name(number) for number in range(keep, first)]
            self._write_index(b"".join(lines[:keep]))
            self._set_aside.take(moved)
        self._remove_unindexed(keep)

    def restore(self, mark: Mark) -> None:
        """Go back to the waypoints that ``mark`` counts; LLPFError where index or files are not those it counted."""
        aside = self._set_aside.read(mark.serial)
        if aside is None:
            content = self.index.content()[: mark.index_bytes]
        else:
            first, kept = aside
            content = b"".join(self.index.lines()[:first] + kept)
        if hashlib.sha256(content).hexdigest() != mark.index_sha256:
            raise LLPFError(f"{self.index.path} was changed after the checkpoint that counts its lines; cannot resume")
        if aside is not None:
            # While files are exchanged the index must not list them: a kill here still leaves a run that checks.
            self._write_index(b"".join(self.index.lines()[: aside[0]]))
            files = [self.folder / waypoint_name(number) for number in range(aside[0], mark.waypoints)]
            self._set_aside.give_back(files)
        self._write_index(content)
        self._set_aside.clear()
        self._remove_unindexed(mark.waypoints)
        for waypoint in self.all():
            if not waypoint.path.exists():
                raise LLPFError(f"{waypoint.path} is missing; cannot resume")

    def _write_index(self, content: bytes) -> None:
        write_bytes(self.index.path, content)
        self.index.forget_size()
        self._known = None

    def _remove_unindexed(self, count: int) -> None:
        """Remove what a killed process or a cut left in ``waypoints/``: numbers from ``count`` on, temporary files."""
        if count == 0:
            self._shapes = None
        if not self.folder.exists():
            return
        names = {waypoint_name(number) for number in range(count)}
        with writing(self.folder):
            for file in list(self.folder.iterdir()):
                if file.name not in names and is_waypoint_file(file):
                    file.unlink()
        self._unsynced = [path for path in self._unsynced if path.name in names]

    def sync(self) -> None:
        """Make every waypoint and the index survive a power failure (an fsync a waypoint: 0.3 to 4 ms)."""
        with writing(self.folder):
            for path in self._unsynced:
                sync_file(path)
            if self.folder.exists():
                sync_folder(self.folder)
        self._unsynced = []
        self.index.sync()

    def check(self, complete: bool) -> None:
        """Read every file: LLPFError by name where one is missing, changed, of another architecture or unknown.

        While a run is not ``complete``, files numbered beyond the index are what a kill -9 leaves, and are allowed.
        """
        known = self.all()
        if not known:
            raise LLPFError(f"{self.folder.parent} has no waypoints yet")
        for waypoint in known:
            self._check_shapes(waypoint.read(), waypoint.path.name)
        names = {waypoint.path.name for waypoint in known}
        for file in sorted(self.folder.iterdir()):
            beyond = file.stem.isdecimal() and int(file.stem) >= len(known)
            left_by_kill = is_temporary(file) or (beyond and not complete)
            if file.name not in names and not left_by_kill:
                raise LLPFError(f"{file} is not in {self.index.path.name}: it is no part of this path; remove it")
