"""``RunDirectory``: everything one search leaves on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..errors import LLPFError, shown
from . import durable as lock
from .checkpoint import Checkpoint, Mark
from .durable import JsonLines, read_bytes, read_json, reading, write_bytes, write_json, writing
from .plain_values import check_kinds, finite_or_none, read_yaml, to_plain
from .state import state_digest
from .waypoints import RetiredWaypoints, Waypoint, WaypointStore

#: What is read from run.yaml and status.json, and of what kind it is: both may have been edited.
_RUN_KINDS = {
    "settings": {
        **dict.fromkeys(("model", "data", "optimizer", "is_norm", "mode", "dialect", "variance", "method"), "text"),
        "threshold": "number",
        "stages": "list",
        **{key: {} for key in ("spheres", "data_flow", "pace")},
        "step": {"join_bias": "true or false"},
        "layers": {"attention": "text"},
        "correction": {},
    },
    "provenance": {**dict.fromkeys(("start", "destination", "data_dir", "loss"), "text"), "code_sha256": {}},
    "environment": {"threads": "whole number"},
    "task": {
        "loss": {"name": "text"},
        "data": {"form": "text", "samples": "whole number", "digest_of": "whole number", "sha256": "text"},
        "evaluation_batch_size": "whole number",
        "settings_sha256": "text",
    },
    **dict.fromkeys(("start_sha256", "destination_sha256", "sphere_sha256"), "text"),
}
_STATUS_KINDS = {
    "arrived": "true or false",
    "index_sha256": "text",
    **dict.fromkeys(("waypoints", "ticks", "sgd_steps"), "whole number"),
    "seconds": "number",
    "ended": "text",
    "notes": "list",
}
_METRICS_KINDS = {
    **dict.fromkeys(("tick", "rounds", "sgd_steps", "stage"), "whole number"),
    **dict.fromkeys(("loss", "distance", "lr"), "number"),
    **dict.fromkeys(("met", "rolled_back"), "true or false"),
    **dict.fromkeys(("distances", "variances", "step"), "list of numbers"),
}
#: What a killed process leaves of a file that it was writing, and a waypoint's file.
_TEMPORARY = re.compile(
    r"\.((run\.yaml|waypoints\.jsonl|metrics\.jsonl|status\.json|certificate\.json|set_aside\.json|path\.(png|svg|csv)"
    r"|report\.html|(\d{6,}|checkpoint)\.safetensors))\.\d+\.tmp"
)
_WAYPOINT = re.compile(r"\d{6,}\.safetensors")
#: Every other file of a run, by its place in the folder.
_OURS = re.compile(
    r"(run\.yaml|(waypoints|metrics)\.jsonl|(status|certificate)\.json|\.lock|path\.(png|svg|csv)|report\.html"
    r"|waypoints/\d{6,}\.safetensors|checkpoint/((\d{6,}|checkpoint)\.safetensors|set_aside\.json))"
)


class RunDirectory:
    """One run on disk; make one with ``create`` or ``open``.

    ::

        run.yaml            what was asked for, on what; ``start_sha256`` and ``destination_sha256`` are state digests
        waypoints/          000000.safetensors ...: a complete state dict each
        waypoints.jsonl     one line a waypoint: index, file, tick, sha256 of the file, and what else was recorded
        metrics.jsonl       one line a tick
        checkpoint/         what resuming needs, beside the above
        status.json         written last, by ``finish``
        certificate.json    the verifier's verdict

    A kill -9 at any moment leaves a run that opens and resumes at its last checkpoint; so does a power failure, because
    a checkpoint is written only after all that it counts was fsynced. Opening and reading change nothing on disk. All
    errors are LLPFError; a full or read-only disk names the folder and leaves the last checkpoint whole.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        #: The content of run.yaml.
        self.run = run
        self._set_aside = RetiredWaypoints(folder / "checkpoint")
        self._checkpoint = Checkpoint(folder / "checkpoint")
        self._store = WaypointStore(folder, self._set_aside)
        self._metrics = JsonLines(folder / "metrics.jsonl")

    @classmethod
    def create(cls, folder: str | os.PathLike[str], run: Mapping[str, Any]) -> RunDirectory:
        """A new run in ``folder``, which must be empty or not there; parents are made.

        ``run`` is written to run.yaml. Its keys ``start_sha256`` and ``destination_sha256``, where given, are the
        ``state_digest`` of the endpoints and are what ``check`` holds the first and the last waypoint against.
        LLPFError when the folder holds another run or anything else, is a file, or cannot be written; then nothing is
        left.
        """
        folder = _as_folder(folder)
        content = to_plain(run)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        with reading(folder):
            exists = folder.exists()
        if exists and not folder.is_dir():
            raise LLPFError(f"{folder} is a file; name a folder for the run")
        made = _make_folders(folder)
        _refuse_used(folder)
        lock.hold(folder)
        try:
            write_bytes(folder / "run.yaml", text.encode())
            with writing(folder):
                (folder / "waypoints").mkdir(exist_ok=True)
                (folder / "checkpoint").mkdir(exist_ok=True)
        except BaseException:
            lock.release(folder)
            _remove_made(folder, made)
            raise
        return cls(folder, content)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> RunDirectory:
        """The run in ``folder``, complete or not; LLPFError saying what is missing when it is not a run."""
        folder = _as_folder(folder)
        with reading(folder):
            exists = folder.exists()
        if not exists:
            raise LLPFError(f"{folder} is missing; name the folder of a run")
        if not folder.is_dir():
            raise LLPFError(f"{folder} is a file; name the folder of a run")
        path = folder / "run.yaml"
        if not path.exists():
            raise LLPFError(f"{folder} is not the folder of a run: it has no run.yaml")
        content = read_bytes(path)
        try:
            run = read_yaml(content)
        except ValueError as error:
            raise LLPFError(f"{path} is damaged: not YAML ({error})") from error
        if not isinstance(run, dict):
            raise LLPFError(f"{path} is damaged: settings by name were expected")
        check_kinds(run, _RUN_KINDS, str(path))
        return cls(folder, run)

    def strangers(self) -> list[Path]:
        """Files in the folder that neither a run nor ``llpf verify`` and ``llpf report`` write, sorted."""
        files = sorted(file for file in self.folder.rglob("*") if not file.is_dir())
        return [file for file in files if not _OURS.fullmatch(file.relative_to(self.folder).as_posix())]

    # Waypoints

    def waypoints(self) -> list[Waypoint]:
        """All recorded waypoints in order, from the index; their files are read by ``Waypoint.load``."""
        return list(self._store.all())

    def add_waypoint(self, tick: int, state: Mapping[str, Tensor], **info: Any) -> Waypoint:
        """Record the next waypoint: the complete state dict after ``tick``, and ``info`` (plain values) in the index.

        Safe from kill -9 at once, from power failure at the next checkpoint. Copy, sha256 and write: LeNet5 2.5 ms,
        ResNet18 0.4 s on a busy core. LLPFError when names or shapes differ from the first waypoint's.
        """
        self._refuse_complete()
        return self._store.add(tick, state, info)

    def truncate(self, waypoints: int, metrics: int | None = None) -> None:
        """Drop all but the first ``waypoints`` waypoints (and all but the first ``metrics`` lines of the metrics).

        May go behind the last checkpoint: what that needs is set aside until the next one, so a kill -9 afterwards
        still resumes there. Metrics behind the checkpoint may not be dropped (ValueError).
        """
        self._refuse_complete()
        lock.hold(self.folder)
        self._refuse_strangers()
        mark = self._checkpoint.mark() if self._checkpoint.exists() else None
        if metrics is not None:
            size = sum(len(line) for line in self._metrics.lines()[:metrics])
            if mark is not None and size < mark.metrics_bytes:
                raise ValueError(f"metrics line {metrics} is behind the last checkpoint")
            self._metrics.cut(size)
        self._store.cut(waypoints, mark)

    def check(self) -> None:
        """Verify the chain of waypoints from the files alone; LLPFError naming the first that fails.

        Indices are consecutive; no file is missing, changed or unknown; names and shapes agree; the index is the one
        the run was finished with; the first waypoint is bit-identical to the start (``start_sha256``) and, where the
        run arrived, the last to the destination. Reads every file once (about 1 ms a megabyte).
        """
        status = self.status
        known = self._store.all()
        if status is not None and (
            status.get("waypoints") != len(known) or status.get("index_sha256") != self.index_digest()
        ):
            raise LLPFError(
                f"{self._store.index.path} was changed after the run finished with {status.get('waypoints')} waypoints "
                f"(it lists {len(known)})"
            )
        self._store.check(self.complete)
        self._check_endpoint("start", known[0])
        if self.arrived:
            self._check_endpoint("destination", known[-1])

    def _check_endpoint(self, name: str, waypoint: Waypoint) -> None:
        expected = self.run.get(f"{name}_sha256")
        if expected is not None and state_digest(waypoint.load()) != expected:
            raise LLPFError(f"waypoint {waypoint.path.name} of {self.folder} is not bit-identical to the {name}")

    def index_digest(self) -> str:
        """sha256 of the waypoint index, which holds every file's sha256: it names the path, bit for bit."""
        return hashlib.sha256(self._store.index.content()).hexdigest()

    # Metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line of plain values (about 0.05 ms); float64 and NaN come back as they were."""
        self._metrics.append(to_plain(record))

    def metrics(self) -> list[dict[str, Any]]:
        """All records; a last line torn by a kill is left out."""
        records = self._metrics.read()
        for number, record in enumerate(records, start=1):
            check_kinds(record, _METRICS_KINDS, f"line {number} of {self._metrics.path}")
        return records

    # Checkpoint

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``tensors`` and plain values ``state``, and note how far waypoints and metrics are.

        Everything it counts is fsynced first, then the checkpoint itself, then it takes the old one's place by one
        rename. LeNet5 on a busy virtual disk: 30 ms (eight fsyncs), and 4 ms for each waypoint since the last one. On
        error the old one stays.
        """
        self._refuse_complete()
        self._store.sync()
        self._metrics.sync()
        serial = self._checkpoint.mark().serial + 1 if self._checkpoint.exists() else 1
        index = self._store.index.content()
        mark = Mark(serial, len(self._store.all()), len(index), hashlib.sha256(index).hexdigest(), self._metrics.size())
        self._checkpoint.save(tensors, state, mark)
        self._set_aside.clear()

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint's tensors (on the CPU) and state; None, and nothing changes, where there is none.

        An unfinished run goes back to that moment: waypoints and metrics recorded after it are removed, dropped ones
        come back. Then this process is the run's writer; LLPFError when another one is. A complete run is not changed.
        """
        if not self._checkpoint.exists():
            if not self.complete:
                lock.hold(self.folder)
            return None
        if self.complete:
            return self._checkpoint.load()[:2]
        lock.hold(self.folder)
        self._refuse_strangers()
        tensors, state, mark = self._checkpoint.load()
        if self._metrics.size() < mark.metrics_bytes:
            raise LLPFError(f"{self._metrics.path} is shorter than the checkpoint says; cannot resume")
        self._store.restore(mark)
        self._metrics.cut(mark.metrics_bytes)
        self._remove_temporary()
        return tensors, state

    def _remove_temporary(self) -> None:
        with writing(self.folder):
            for folder in (self.folder, self.folder / "checkpoint"):
                for file in list(folder.iterdir()) if folder.exists() else []:
                    if _TEMPORARY.fullmatch(file.name):
                        file.unlink()

    def _refuse_strangers(self) -> None:
        """LLPFError where going back would remove a file that only looks like a waypoint or a remainder."""
        for folder in (self.folder / "waypoints", self.folder / "checkpoint"):
            with writing(self.folder):
                names = [file.name for file in folder.iterdir()] if folder.exists() else []
            for name in sorted(names):
                ours = _WAYPOINT.fullmatch(name) or _TEMPORARY.fullmatch(name)
                if not ours and (name[:1].isdecimal() or name.endswith(".tmp")):
                    raise LLPFError(f"{folder / name} is no part of the run; move it away")

    # Results

    def finish(self, *, arrived: bool = True, **info: Any) -> None:
        """Mark the run complete: no waypoint may be added or dropped any more. ``info`` goes to status.json.

        ``arrived`` says that the last waypoint is the destination, which ``check`` then insists on.
        """
        self._refuse_complete()
        self._store.sync()
        self._metrics.sync()
        status = {
            "complete": True,
            "arrived": arrived,
            "waypoints": len(self._store.all()),
            "index_sha256": self.index_digest(),
            **to_plain(info),
        }
        write_json(self.folder / "status.json", finite_or_none(status))
        self._set_aside.clear()
        lock.release(self.folder)

    @property
    def status(self) -> dict[str, Any] | None:
        """The content of status.json; None while the run is not complete."""
        path = self.folder / "status.json"
        if not path.exists():
            return None
        status = read_json(path)
        check_kinds(status, _STATUS_KINDS, str(path))
        return status

    @property
    def complete(self) -> bool:
        return (self.folder / "status.json").exists()

    @property
    def arrived(self) -> bool:
        """Whether the run is complete and its last waypoint is the destination."""
        status = self.status
        return status is not None and bool(status.get("arrived"))

    def write_certificate(self, certificate: Mapping[str, Any]) -> None:
        """Write certificate.json, atomically; NaN and infinity become null (strict JSON)."""
        write_json(self.folder / "certificate.json", finite_or_none(to_plain(certificate)))

    def certificate(self) -> dict[str, Any] | None:
        path = self.folder / "certificate.json"
        return read_json(path) if path.exists() else None

    def _refuse_complete(self) -> None:
        if self.complete:
            raise LLPFError(f"{self.folder} holds a complete run; it is not written to any more")


def _as_folder(given: object) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        hint = "; pass its .folder" if hasattr(given, "folder") else ""
        raise LLPFError(f"the folder of a run must be a path, got {shown(given)}{hint}")
    path = os.fspath(given)
    if not isinstance(path, str) or "\0" in path:
        raise LLPFError(f"the folder of a run must be a path, got {shown(path)}")
    return Path(path)


def _make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and its parents; those made, innermost first."""
    missing = [folder, *folder.parents]
    made = missing[: next((i for i, parent in enumerate(missing) if parent.exists()), len(missing))]
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            _remove_made(folder, made)
            raise
    return made


def _refuse_used(folder: Path) -> None:
    if (folder / "run.yaml").exists():
        raise LLPFError(f"{folder} holds another run; choose another folder, or resume that run")
    with writing(folder):
        # A process killed while it created a run leaves its lock and a temporary file, nothing else.
        used = [file for file in folder.iterdir() if not _TEMPORARY.fullmatch(file.name) and file.name != ".lock"]
    if used:
        raise LLPFError(f"{folder} is not empty (it holds {min(used).name}); choose another folder")


def _remove_made(folder: Path, made: list[Path]) -> None:
    """Undo a failed ``create`` of what was an empty folder: our own files, and the folders made for it."""
    for name in ("run.yaml", ".lock"):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    for path in (folder / "waypoints", folder / "checkpoint", *made):
        with contextlib.suppress(OSError):
            path.rmdir()
