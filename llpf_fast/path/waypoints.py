"""Waypoints on disk: a file each and an index in order; dropped ones are retired until the next checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LLPFError, shown
from .checkpoint import Cursor
from .durable import (
    JsonLines,
    is_temporary,
    read_bytes,
    read_json,
    sync_file,
    sync_folder,
    write_bytes,
    write_json,
    writing,
)
from .plain_values import to_plain
from .state import decode_state, differences, encode_state, shapes

#: Keys of an index line that the run writes; ``info`` may not have them.
_INDEX_KEYS = ("index", "file", "tick", "sha256")


def waypoint_name(index: int) -> str:
    """File name of waypoint number ``index``."""
    return f"{index:06d}.safetensors"


def is_waypoint_file(path: Path) -> bool:
    """Whether the name is that of a waypoint's file, or of its temporary file."""
    return re.fullmatch(r"\d{6,}\.safetensors|\.\d{6,}\.safetensors\.\d+\.tmp", path.name) is not None


@dataclass(frozen=True)
class Waypoint:
    """An entry of the index: the file ``path``, its sha256, and the tick after which it was recorded.

    ``info`` has the other values of the entry (a loss, numbers of steps).
    """

    index: int
    tick: int
    path: Path
    sha256: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The file's bytes; LLPFError naming the file when it is missing or is not the one that was recorded."""
        data = read_bytes(self.path)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != self.sha256:
            raise LLPFError(
                f"waypoint {self.path.name} was changed after it was recorded "
                f"(sha256 {sha256[:12]}... != {self.sha256[:12]}...) in {self.path.parent}"
            )
        return data

    def load(self) -> dict[str, Tensor]:
        """The state dict on the CPU, buffers included, as ``model.load_state_dict`` takes it; errors as ``read``."""
        return decode_state(self.read(), self.path)

    def record(self) -> dict[str, Any]:
        """The waypoint's line in ``waypoints.jsonl``."""
        return {"index": self.index, "file": self.path.name, "tick": self.tick, "sha256": self.sha256, **self.info}

    @staticmethod
    def from_record(record: dict[str, Any], index: int, folder: Path, source: Path) -> Waypoint:
        """The waypoint of a line of ``source``; LLPFError when it is not waypoint number ``index``.

        The name must be that of a waypoint's file: a changed index cannot point outside the run. Its number need not be
        ``index``, since a mended path has new files in its middle.
        """
        for key, kind in (("index", int), ("file", str), ("tick", int), ("sha256", str)):
            if type(record.get(key)) is not kind:
                raise LLPFError(f"{source} is damaged: line {index + 1} has no {key}")
        if record["index"] != index:
            raise LLPFError(
                f"{source}: line {index + 1} is waypoint {record['index']}, expected {index}; waypoints were deleted "
                "or re-ordered"
            )
        if re.fullmatch(r"[0-9]{6,}\.safetensors", record["file"]) is None:
            raise LLPFError(f"{source} is damaged: line {index + 1} names {shown(record['file'])}, no waypoint's file")
        info = {key: value for key, value in record.items() if key not in _INDEX_KEYS}
        return Waypoint(index, record["tick"], folder / record["file"], record["sha256"], info)


@dataclass(frozen=True)
class Splice:
    """A path with other waypoints in its middle: the new ``files`` with their bytes, the new index, its length."""

    files: Mapping[Path, bytes]
    index: bytes
    waypoints: int

    @property
    def index_sha256(self) -> str:
        return hashlib.sha256(self.index).hexdigest()


class RetiredWaypoints:
    """Dropped waypoints in the checkpoint's folder, until the next checkpoint no longer needs them.

    A search may drop waypoints that are older than its last checkpoint (a rollback, a thinning) and record others under
    the same numbers. A search that is killed then resumes at the checkpoint, which counts the dropped ones. So their
    index lines go to ``set_aside.json``, and their files are renamed into this folder, not copied.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._list = folder / "set_aside.json"

    def read(self, serial: int) -> tuple[int, list[bytes]] | None:
        """Number of the first dropped waypoint and the index lines from it on; None without any of this checkpoint."""
        if not self._list.exists():
            return None
        content = read_json(self._list)
        if content.get("checkpoint") != serial:
            return None
        return content["first"], [line.encode() + b"\n" for line in content["lines"]]

    def write(self, serial: int, first: int, lines: list[bytes]) -> None:
        """List the waypoints from ``first`` on, whose index ``lines`` checkpoint ``serial`` counts."""
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        text = [line.decode().rstrip("\n") for line in lines]
        write_json(self._list, {"checkpoint": serial, "first": first, "lines": text})

    def take(self, files: list[Path]) -> None:
        """Move ``files`` here."""
        with writing(self._folder):
            for file in files:
                os.replace(file, self._folder / file.name)
            sync_folder(self._folder)

    def give_back(self, files: list[Path]) -> None:
        """Move back those of ``files`` that are here; the others were not moved, or moved back before a kill."""
        with writing(self._folder):
            for file in files:
                if (self._folder / file.name).exists():
                    os.replace(self._folder / file.name, file)

    def clear(self) -> None:
        """Remove everything: the list first, so that it never names files that are gone."""
        if not self._folder.exists():
            return
        with writing(self._folder):
            self._list.unlink(missing_ok=True)
            for file in filter(is_waypoint_file, list(self._folder.iterdir())):
                file.unlink(missing_ok=True)


class WaypointStore:
    """``waypoints/`` and ``waypoints.jsonl`` of the run in ``folder``.

    A file is written under a temporary name and renamed, then its line is appended: a kill -9 leaves at most files
    without a line, never a line without its file. Neither is fsynced then: that takes 4 ms a waypoint on a busy disk,
    and resuming drops what came after the checkpoint. ``sync`` fsyncs all before a checkpoint counts them.
    """

    def __init__(self, folder: Path, retired: RetiredWaypoints) -> None:
        self.folder = folder / "waypoints"
        self.index = JsonLines(folder / "waypoints.jsonl")
        self._retired = retired
        self._known: list[Waypoint] | None = None
        self._shapes: dict[str, list[int]] | None = None
        self._unsynced: list[Path] = []

    def all(self) -> list[Waypoint]:
        """The waypoints in the index; LLPFError where it is damaged."""
        if self._known is None:
            records = self.index.read()
            self._known = [
                Waypoint.from_record(record, number, self.folder, self.index.path)
                for number, record in enumerate(records)
            ]
            if len({waypoint.path for waypoint in self._known}) < len(records):
                raise LLPFError(f"{self.index.path} is damaged: two lines name one file")
        return self._known

    def add(self, tick: int, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> Waypoint:
        """Record the next waypoint; LLPFError where it is of another architecture than the first."""
        reserved = [key for key in info if key in _INDEX_KEYS]
        if reserved:
            raise ValueError(f"waypoint info may not be called {reserved[0]!r}: the index uses that name")
        known = self.all()
        data = encode_state(state)
        self._check_shapes(data, f"waypoint {len(known)}")
        path = self.folder / waypoint_name(len(known))
        waypoint = Waypoint(len(known), int(tick), path, hashlib.sha256(data).hexdigest(), to_plain(info))
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
        problems = differences(self._shapes, shapes(data, name), "waypoint 0", name)
        if problems:
            raise LLPFError(f"{name} of {self.folder.parent} is of another architecture: {problems}")

    def truncate(self, count: int, cursor: Cursor | None) -> None:
        """Drop all but the first ``count`` waypoints; those that the checkpoint of ``cursor`` needs are retired.

        A kill -9 at any line loses nothing because of the order: the list of what to bring back, the index, the files.
        """
        lines = self.index.lines()
        if count < len(lines):
            moved: list[Path] = []
            if cursor is not None:
                first, retired = self._retired.read(cursor.serial) or (cursor.waypoints, [])
                if not retired:
                    self._retired.clear()
                if count < first:
                    self._retired.write(cursor.serial, count, lines[count:first] + retired)
                    moved = [self.folder / waypoint_name(number) for number in range(count, first)]
            self._write_index(b"".join(lines[:count]))
            self._retired.take(moved)
        self._remove_unindexed(count)

    def restore(self, cursor: Cursor) -> None:
        """Go back to the waypoints of ``cursor``; LLPFError where the index or the files are not those it counted."""
        retired = self._retired.read(cursor.serial)
        if retired is None:
            content = self.index.content()[: cursor.index_bytes]
        else:
            first, lines = retired
            content = b"".join(self.index.lines()[:first] + lines)
        if hashlib.sha256(content).hexdigest() != cursor.index_sha256:
            raise LLPFError(f"{self.index.path} was changed after the checkpoint that counts its lines; cannot resume")
        if retired is not None:
            # The index must not list files while they are moved: a kill here still leaves a run that checks.
            self._write_index(b"".join(self.index.lines()[:first]))
            files = [self.folder / waypoint_name(number) for number in range(first, cursor.waypoints)]
            self._retired.give_back(files)
        self._write_index(content)
        self._retired.clear()
        self._remove_unindexed(cursor.waypoints)
        for waypoint in self.all():
            if not waypoint.path.exists():
                raise LLPFError(f"{waypoint.path} is missing; cannot resume")

    def _write_index(self, content: bytes) -> None:
        self.index.replace(content)
        self._known = None

    def _remove_unindexed(self, count: int) -> None:
        """Remove the files of waypoints from number ``count`` on, and temporary files."""
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

    def splice(
        self, after: int, before: int, states: Sequence[Mapping[str, Tensor]], info: Mapping[str, Any]
    ) -> Splice:
        """The waypoints with ``states`` in place of those between ``after`` and ``before``; nothing is written yet.

        Raises:
            LLPFError: a state of another architecture.
        """
        known = self.all()
        number = 1 + max(int(waypoint.path.stem) for waypoint in known)
        made, content = [], []
        for i, state in enumerate(states):
            data, path = encode_state(state), self.folder / waypoint_name(number + i)
            self._check_shapes(data, f"the new waypoint {path.name}")
            sha256 = hashlib.sha256(data).hexdigest()
            made.append(Waypoint(0, known[after].tick, path, sha256, to_plain(info)))
            content.append(data)
        order = [*known[: after + 1], *made, *known[before:]]
        lines = [
            json.dumps(replace(waypoint, index=i).record(), ensure_ascii=False) for i, waypoint in enumerate(order)
        ]
        files = dict(zip((waypoint.path for waypoint in made), content, strict=True))
        return Splice(files, "".join(f"{line}\n" for line in lines).encode(), len(order))

    def write_splice(self, splice: Splice) -> None:
        """Write the new files, then the index, durably: the index's rename makes the path the new one."""
        for path, data in splice.files.items():
            write_bytes(path, data)
        self._write_index(splice.index)

    def remove_strays(self) -> None:
        """Remove files of waypoints that the index does not name."""
        names = {waypoint.path.name for waypoint in self.all()}
        with writing(self.folder):
            for file in list(self.folder.iterdir()):
                if file.name not in names and is_waypoint_file(file):
                    file.unlink()

    def check(self, complete: bool, *, splicing: bool = False) -> None:
        """Read every file: LLPFError naming one that is missing, changed, of another architecture or unknown.

        A run that is not ``complete`` may have files with numbers beyond the index: a kill -9 leaves them; where it
        stopped a ``splicing``, any waypoint's files.
        """
        known = self.all()
        if not known:
            raise LLPFError(f"{self.folder.parent} has no waypoints yet")
        for waypoint in known:
            self._check_shapes(waypoint.read(), waypoint.path.name)
        names = {waypoint.path.name for waypoint in known}
        for file in sorted(self.folder.iterdir()):
            beyond = file.stem.isdecimal() and int(file.stem) >= len(known)
            left_by_kill = is_temporary(file) or (beyond and not complete) or (splicing and is_waypoint_file(file))
            if file.name not in names and not left_by_kill:
                raise LLPFError(f"{file} is not in {self.index.path.name}: it is no part of this path; remove it")
