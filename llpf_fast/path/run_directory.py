"""``RunDirectory``: the files of one search."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LLPFError, shown
from .checkpoint import Checkpoint, Cursor
from .durable import JsonLines, lock, read_bytes, read_json, reading, unlock, write_bytes, write_json, writing
from .plain_values import check_kinds, finite_or_none, read_yaml, to_plain, write_yaml
from .state import state_digest
from .waypoints import RetiredWaypoints, Waypoint, WaypointStore, is_waypoint_file

#: ``llpf_fast`` in run.yaml. 2: settings in groups (``pacing.target_steps`` was ``pace.rounds``).
FORMAT = 2
#: The kinds of the values that are read from run.yaml and status.json: both may have been edited.
_RUN_KINDS = {
    "settings": {
        **dict.fromkeys(("model", "data", "optimizer", "is_norm", "mode", "dialect", "method"), "text"),
        "threshold": "number",
        "seed": "whole number",
        **{key: {} for key in ("spheres", "pacing", "screening", "arrival", "record")},
        "schedule": {"stages": "list"},
        "step": {"join_bias": "true or false"},
        "layers": {"attention": "text"},
        "correction": {},
    },
    "provenance": {**dict.fromkeys(("start", "destination", "data_dir", "loss"), "text"), "code_sha256": {}},
    "environment": {"threads": "whole number"},
    "task": {
        "loss": {"name": "text"},
        "data": {"form": "text", "samples": "whole number", "digest_of": "positive whole number", "sha256": "text"},
        "evaluation_batch_size": "whole number",
        "settings_sha256": "text",
    },
    **dict.fromkeys(("goal", "start_sha256", "destination_sha256", "sphere_sha256"), "text"),
}
_STATUS_KINDS = {
    "arrived": "true or false",
    "index_sha256": "text",
    **dict.fromkeys(("waypoints", "ticks", "sgd_steps"), "whole number"),
    "seconds": "number",
    "ended": "text",
    "notes": "list",
    "mends": "list",
    "splicing": {"waypoints": "whole number", "index_sha256": "text"},
}
_METRICS_KINDS = {
    **dict.fromkeys(("tick", "rounds", "sgd_steps", "stage"), "whole number"),
    **dict.fromkeys(("loss", "distance", "lr"), "number"),
    **dict.fromkeys(("met", "rolled_back"), "true or false"),
    **dict.fromkeys(("distances", "variances", "step"), "list of numbers"),
}
#: Names of temporary files, which a killed process leaves.
_TEMPORARY = re.compile(
    r"\.((run\.yaml|waypoints\.jsonl|metrics\.jsonl|status\.json|certificate\.json|set_aside\.json|path\.(png|svg|csv)"
    r"|report\.html|(\d{6,}|checkpoint)\.safetensors))\.\d+\.tmp"
)
#: Paths in the folder of all other files of a run.
_RUN_FILE = re.compile(
    r"(run\.yaml|(waypoints|metrics)\.jsonl|(status|certificate)\.json|\.lock|path\.(png|svg|csv)|report\.html"
    r"|waypoints/\d{6,}\.safetensors|checkpoint/((\d{6,}|checkpoint)\.safetensors|set_aside\.json))"
)


class RunDirectory:
    """One run on disk; make one with ``create`` or ``open``.

    ::

        run.yaml            settings, task and environment; ``start_sha256`` and ``destination_sha256``: state digests
        waypoints/          000000.safetensors ...: a complete state dict each
        waypoints.jsonl     one line a waypoint, in the order of the path: index, file, tick, sha256 of the file, other
                            recorded values
        metrics.jsonl       one line a tick
        checkpoint/         the state of the search, from which it resumes
        status.json         written last, by ``finish``
        certificate.json    written by ``verify_run``

    After a kill -9 at any moment the run opens and resumes at its last checkpoint. So it does after a power failure,
    because a checkpoint is written only after all that it counts was fsynced. Opening and reading change nothing on
    disk. All errors are LLPFError. When the disk is full or read-only the message names the folder, and the last
    checkpoint is unchanged.

    Attributes:
        folder: the run's folder.
        run: the content of run.yaml.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        self.run = run
        self._retired = RetiredWaypoints(folder / "checkpoint")
        self._checkpoint = Checkpoint(folder / "checkpoint")
        self._store = WaypointStore(folder, self._retired)
        self._metrics = JsonLines(folder / "metrics.jsonl")

    @classmethod
    def create(cls, folder: str | os.PathLike[str], run: Mapping[str, Any]) -> RunDirectory:
        """A new run in ``folder``, which must be empty or missing; parents are made.

        ``run`` is written to run.yaml. Its keys ``start_sha256`` and ``destination_sha256``, where given, are the
        ``state_digest`` of the endpoints; ``check`` compares the first and the last waypoint with them.

        Raises:
            LLPFError: the folder is not empty, is a file, or cannot be written; then no file of the run is left.
        """
        folder = _as_folder(folder)
        content = to_plain(run)
        text = write_yaml(content)
        with reading(folder):
            exists = folder.exists()
        if exists and not folder.is_dir():
            raise LLPFError(f"{folder} is a file; name a folder for the run")
        made = _make_folders(folder)
        _check_empty(folder)
        lock(folder)
        try:
            write_bytes(folder / "run.yaml", text.encode())
            with writing(folder):
                (folder / "waypoints").mkdir(exist_ok=True)
                (folder / "checkpoint").mkdir(exist_ok=True)
        except BaseException:
            unlock(folder)
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
        if run.get("llpf_fast", FORMAT) != FORMAT:
            raise LLPFError(
                f"{folder} was written by another version of llpf_fast, whose settings have other names (format "
                f"{shown(run['llpf_fast'])}, this one reads {FORMAT}): search the path again"
            )
        check_kinds(run, _RUN_KINDS, str(path))
        return cls(folder, run)

    def foreign_files(self) -> list[Path]:
        """Files in the folder that neither a search nor ``llpf verify`` and ``llpf report`` write, sorted."""
        files = sorted(file for file in self.folder.rglob("*") if not file.is_dir())
        return [file for file in files if not _RUN_FILE.fullmatch(file.relative_to(self.folder).as_posix())]

    # Waypoints

    def waypoints(self) -> list[Waypoint]:
        """All waypoints in the order of the index; ``Waypoint.load`` reads their files."""
        return list(self._store.all())

    def add_waypoint(self, tick: int, state: Mapping[str, Tensor], **info: Any) -> Waypoint:
        """Record the next waypoint: the complete state dict after ``tick``, and ``info`` (plain values) in the index.

        It survives a kill -9 at once, a power failure from the next checkpoint on. Copy, sha256 and write take 2.5 ms
        for LeNet5 and 0.4 s for ResNet18 on a busy core. LLPFError when names or shapes differ from the first
        waypoint's.
        """
        self._refuse_complete()
        return self._store.add(tick, state, info)

    def truncate(self, waypoints: int, metrics: int | None = None) -> None:
        """Drop all but the first ``waypoints`` waypoints (and all but the first ``metrics`` lines of the metrics).

        Waypoints that the last checkpoint counts may be dropped: they are retired until the next checkpoint, so that a
        search that is killed still resumes. ValueError for metrics that the last checkpoint counts.
        """
        self._refuse_complete()
        lock(self.folder)
        self._check_foreign_files()
        cursor = self._checkpoint.cursor() if self._checkpoint.exists() else None
        if metrics is not None:
            size = sum(len(line) for line in self._metrics.lines()[:metrics])
            if cursor is not None and size < cursor.metrics_bytes:
                raise ValueError(f"metrics line {metrics} is behind the last checkpoint")
            self._metrics.truncate(size)
        self._store.truncate(waypoints, cursor)

    def check(self) -> None:
        """Check all waypoints; LLPFError naming the first that fails.

        Indices are consecutive; no file is missing, changed or unknown; names and shapes agree; the index is that of
        the finished run; the first waypoint is bit-identical to the start (``start_sha256``) and, where the run
        arrived, the last to the destination. Reads every file once (about 1 ms a megabyte).
        """
        status = self.status
        known = self._store.all()
        splicing = None if status is None else status.get("splicing")
        if status is not None and not any(self._lists(each) for each in (status, splicing or {})):
            raise LLPFError(
                f"{self._store.index.path} was changed after the run finished with {status.get('waypoints')} waypoints "
                f"(it lists {len(known)})"
            )
        self._store.check(status is not None, splicing=splicing is not None)
        self._check_endpoint("start", known[0])
        if self.arrived:
            self._check_endpoint("destination", known[-1])

    def _lists(self, recorded: Mapping[str, Any]) -> bool:
        """Whether the index is the one that ``recorded`` names."""
        here = len(self._store.all()), self.index_digest()
        return (recorded.get("waypoints"), recorded.get("index_sha256")) == here

    def _check_endpoint(self, name: str, waypoint: Waypoint) -> None:
        expected = self.run.get(f"{name}_sha256")
        if expected is not None and state_digest(waypoint.load()) != expected:
            raise LLPFError(f"waypoint {waypoint.path.name} of {self.folder} is not bit-identical to the {name}")

    def index_digest(self) -> str:
        """sha256 of the waypoint index. The index has every file's sha256, so this identifies the path bit for bit."""
        return hashlib.sha256(self._store.index.content()).hexdigest()

    # Metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line of plain values (about 0.05 ms); float64 values, NaN included, keep their bits."""
        self._metrics.append(to_plain(record))

    def metrics(self) -> list[dict[str, Any]]:
        """All records, without an incomplete last line that a kill left."""
        records = self._metrics.read()
        for number, record in enumerate(records, start=1):
            check_kinds(record, _METRICS_KINDS, f"line {number} of {self._metrics.path}")
        return records

    # Checkpoint

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``tensors``, plain values ``state`` and the lengths of waypoints and metrics.

        Everything it counts is fsynced first, then the new file, which one rename then puts in the old one's place.
        LeNet5 on a busy virtual disk: 30 ms (eight fsyncs), and 4 ms for each waypoint since the last checkpoint. On an
        error the old checkpoint remains.
        """
        self._refuse_complete()
        self._store.sync()
        self._metrics.sync()
        serial = self._checkpoint.cursor().serial + 1 if self._checkpoint.exists() else 1
        index = self._store.index.content()
        sha256 = hashlib.sha256(index).hexdigest()
        cursor = Cursor(serial, len(self._store.all()), len(index), sha256, self._metrics.size())
        self._checkpoint.save(tensors, state, cursor)
        self._retired.clear()

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint's tensors (on the CPU) and state; None where there is none.

        An unfinished run goes back to the checkpoint: waypoints and metrics recorded after it are removed, dropped ones
        are restored. From then on only this process may write the run; LLPFError when another one does. A complete run
        is not changed.
        """
        if not self._checkpoint.exists():
            if not self.complete:
                lock(self.folder)
            return None
        if self.complete:
            return self._checkpoint.load()[:2]
        lock(self.folder)
        self._check_foreign_files()
        tensors, state, cursor = self._checkpoint.load()
        if self._metrics.size() < cursor.metrics_bytes:
            raise LLPFError(f"{self._metrics.path} is shorter than the checkpoint says; cannot resume")
        self._store.restore(cursor)
        self._metrics.truncate(cursor.metrics_bytes)
        self._remove_temporary()
        return tensors, state

    def _remove_temporary(self) -> None:
        with writing(self.folder):
            for folder in (self.folder, self.folder / "checkpoint"):
                for file in list(folder.iterdir()) if folder.exists() else []:
                    if _TEMPORARY.fullmatch(file.name):
                        file.unlink()

    def _check_foreign_files(self) -> None:
        """LLPFError for a file that is not the run's, but has a name much like a waypoint's or a temporary file's."""
        for folder in (self.folder / "waypoints", self.folder / "checkpoint"):
            with writing(self.folder):
                names = [file.name for file in folder.iterdir()] if folder.exists() else []
            for name in sorted(names):
                of_run = is_waypoint_file(folder / name) or _TEMPORARY.fullmatch(name)
                if not of_run and (name[:1].isdecimal() or name.endswith(".tmp")):
                    raise LLPFError(f"{folder / name} is no part of the run; move it away")

    # Results

    def finish(self, *, arrived: bool = True, **info: Any) -> None:
        """Complete the run: no waypoint may be added or dropped after this. ``info`` goes to status.json.

        ``arrived``: the last waypoint is the destination, bit for bit; ``check`` verifies it.
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
        self._retired.clear()
        unlock(self.folder)

    def splice(
        self, after: int, before: int, states: Sequence[Mapping[str, Tensor]], status: Mapping[str, Any], **info: Any
    ) -> None:
        """Put ``states`` in place of the waypoints between ``after`` and ``before`` of a complete run.

        A kill -9 or a power failure at any moment leaves the old path or the new one, whole, and :meth:`check` accepts
        both: status.json names both indices until the new one is in place. ``status`` replaces values in status.json;
        ``info`` goes to the index, beside the tick of the waypoint ``after``. All new states are in memory at once.

        Raises:
            LLPFError: the run is not complete, or another process writes it; a state of another architecture.
        """
        self.end_splice()
        old = self.status
        if old is None:
            raise LLPFError(f"{self.folder} holds no complete run: there is no whole path to change")
        splice = self._store.splice(after, before, states, info)
        new = {**to_plain(status), "waypoints": splice.waypoints, "index_sha256": splice.index_sha256}
        write_json(self.folder / "status.json", finite_or_none({**old, "splicing": new}))
        self._store.write_splice(splice)
        self.end_splice()
        unlock(self.folder)

    def end_splice(self) -> None:
        """Tidy up after a :meth:`splice`, also after one that was killed; locks the run."""
        lock(self.folder)
        status = self.status
        if status is None or "splicing" not in status:
            return
        new = status.pop("splicing")
        self._store.remove_strays()
        write_json(self.folder / "status.json", {**status, **(new if self._lists(new) else {})})
        self._remove_temporary()

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
        """Write certificate.json, atomically; NaN and infinity become null, as strict JSON has neither."""
        write_json(self.folder / "certificate.json", finite_or_none(to_plain(certificate)))

    def certificate(self) -> dict[str, Any] | None:
        """The content of certificate.json; None where there is none."""
        path = self.folder / "certificate.json"
        return read_json(path) if path.exists() else None

    def _refuse_complete(self) -> None:
        if self.complete:
            raise LLPFError(f"{self.folder} holds a complete run, which cannot be changed")


def _as_folder(given: object) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        hint = "; pass its .folder" if hasattr(given, "folder") else ""
        raise LLPFError(f"the folder of a run must be a path, got {shown(given)}{hint}")
    path = os.fspath(given)
    if not isinstance(path, str) or "\0" in path:
        raise LLPFError(f"the folder of a run must be a path, got {shown(path)}")
    return Path(path)


def _make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and its parents; returns those made, innermost first."""
    missing = [folder, *folder.parents]
    made = missing[: next((i for i, parent in enumerate(missing) if parent.exists()), len(missing))]
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            _remove_made(folder, made)
            raise
    return made


def _check_empty(folder: Path) -> None:
    if (folder / "run.yaml").exists():
        raise LLPFError(f"{folder} holds another run; choose another folder, or resume that run")
    with writing(folder):
        # A process that is killed while it creates a run leaves its lock and a temporary file.
        used = [file for file in folder.iterdir() if not _TEMPORARY.fullmatch(file.name) and file.name != ".lock"]
    if used:
        raise LLPFError(f"{folder} is not empty (it holds {min(used).name}); choose another folder")


def _remove_made(folder: Path, made: list[Path]) -> None:
    """Remove what a failed ``create`` made in an empty folder: its files, and the folders ``made``."""
    for name in ("run.yaml", ".lock"):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    for path in (folder / "waypoints", folder / "checkpoint", *made):
        with contextlib.suppress(OSError):
            path.rmdir()
