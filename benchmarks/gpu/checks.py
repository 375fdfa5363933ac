"""The checks of tests/gpu without pytest: units of work over several processes, one row each as it ends.

    python3 -m benchmarks.gpu.checks --backend cuda --only captured --to FILE    # alone: its times are looked at
    python3 -m benchmarks.gpu.checks --backend cuda,triton --only ops --workers 12 --to FILE

Every process has one thread: with two of torch's on two busy cores the check of sgd_ took 25 s of processor time,
not 2.9. A unit that fails ends its process, since a fault on the GPU spoils all that comes after; the rest of the queue
goes on in a new one. The last row sums up. The status is 0 if something passed and nothing failed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from .rows import Emit, Row, why, writer

ROOT = Path(__file__).resolve().parents[2]
#: Where the checks are; a test puts others in their place.
MODULE = str(ROOT / "tests/gpu/gpu_checks.py")
#: Seconds of one unit, compiling included, before its process is ended; and of a process's start.
UNIT_SECONDS, START_SECONDS = 60.0, 120.0
#: Starts that fail one after the other before the rest is given up.
MOST_FAILED_STARTS = 3

Unit = tuple[str, str]


# ---- in a process of its own


def work(pipe: Connection, module: str, device: str) -> None:
    """Run the units that come through the pipe; the parent ends this process, as it does after a unit that fails."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent, however that ends
    for place in (ROOT, Path(module).parent):
        sys.path.insert(0, str(place))
    checks = importlib.import_module(Path(module).stem)
    pipe.send({})
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_row(checks, *pipe.recv(), device))


def _row(checks: object, backend: str, unit: str, device: str) -> Row:
    began, cpu = time.monotonic(), time.process_time()
    try:
        row = {"result": "passed"} | checks.run_unit(unit, backend, device)  # type: ignore[attr-defined]
    except Exception as error:  # whatever a backend raises is the finding
        kind = {"NotHere": "not here", "Unavailable": "skipped"}.get(type(error).__name__, "failed")
        row = {"result": kind, "why": why(error) if kind == "failed" else str(error)}
    return row | {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}


# ---- the parent


@dataclass
class Worker:
    """A process, what it is at, and until when it may be; ``unit`` is None until it has started."""

    process: BaseProcess
    pipe: Connection
    unit: Unit | None
    began: float
    until: float
    ready: bool = False


class Pool:
    """Hands the units to processes, in their order, and starts a new process for each that was lost."""

    def __init__(
        self,
        units: Sequence[Unit],
        device: str,
        workers: int,
        unit_seconds: float,
        until: float,
        module: str,
        emit: Emit,
    ) -> None:
        self._queue = deque(units)
        self._device, self._most, self._seconds, self._until = device, workers, unit_seconds, until
        self._module, self._emit = module, emit
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self.counts: Counter[str] = Counter()
        self.cpu_seconds, self.started = 0.0, 0

    def run(self) -> None:
        try:
            while self._queue or any(worker.unit for worker in self._workers):
                self._start()
                now = time.monotonic()
                due = min([self._until, *(worker.until for worker in self._workers)])
                said = wait([worker.pipe for worker in self._workers], min(60.0, max(0.0, due - now)))
                for worker in [one for one in self._workers if one.pipe in said]:
                    self._hear(worker)
                self._end_what_is_late()
                if time.monotonic() >= self._until or self._failed_starts >= MOST_FAILED_STARTS:
                    return self._give_up()
        finally:
            for worker in self._workers:
                self._kill(worker)

    def _start(self) -> None:
        wanted = min(self._most, len(self._queue) + sum(worker.unit is not None for worker in self._workers))
        while len(self._workers) < wanted:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self._module, self._device), daemon=True)
            process.start()
            theirs.close()  # so that its end is the end of the pipe
            self.started += 1
            now = time.monotonic()
            self._workers.append(Worker(process, ours, None, now, now + START_SECONDS))
        for worker in self._workers:
            if worker.ready and worker.unit is None and self._queue:
                self._hand(worker)

    def _hand(self, worker: Worker) -> None:
        worker.unit, worker.began = self._queue.popleft(), time.monotonic()
        worker.until = worker.began + self._seconds
        with contextlib.suppress(OSError):  # its end is heard as the end of the pipe
            worker.pipe.send(worker.unit)

    def _hear(self, worker: Worker) -> None:
        try:
            row = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self._lost(worker, f"the process ended {_how(worker.process.exitcode)}")
            return
        if worker.unit is None:
            worker.ready, worker.until, self._failed_starts = True, float("inf"), 0
            return
        self._finish(worker, row)
        if row["result"] == "failed":
            self._kill(worker)

    def _end_what_is_late(self) -> None:
        for worker in list(self._workers):
            if time.monotonic() >= worker.until:
                self._kill(worker)
                self._lost(worker, f"no end after {time.monotonic() - worker.began:.0f} s; its process was ended")

    def _lost(self, worker: Worker, reason: str) -> None:
        if worker.unit is None:
            self._failed_starts += not worker.ready
            print(f"checks: {reason} before its first unit" if not worker.ready else f"checks: {reason}", flush=True)
        else:
            self._finish(worker, {"result": "failed", "why": reason})
        self._kill(worker)

    def _finish(self, worker: Worker, row: Row) -> None:
        assert worker.unit is not None
        row.setdefault("seconds", round(time.monotonic() - worker.began, 3))
        self.cpu_seconds += row.get("cpu_seconds", 0.0)
        self._tell(worker.unit, row)
        worker.unit, worker.until = None, float("inf")

    def _tell(self, unit: Unit, row: Row) -> None:
        backend, name = unit
        check, _, group = name.partition(": ")
        self.counts[row["result"]] += 1
        self._emit({"check": check, "group": group, "backend": backend} | row)

    def _kill(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        worker.process.kill()
        worker.pipe.close()

    def _give_up(self) -> None:
        budget = time.monotonic() >= self._until
        reason = "the budget was up" if budget else f"{MOST_FAILED_STARTS} processes failed to start"
        for worker in list(self._workers):
            if worker.unit is not None:
                self._finish(worker, {"result": "failed", "why": f"had not ended when {reason}"})
        while self._queue:
            self._tell(
                self._queue.popleft(), {"result": "skipped" if budget else "failed", "why": reason, "seconds": 0.0}
            )


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code} ({signal.Signals(-code).name})"
    return f"with status {code}"


def run(
    units: Sequence[Unit],
    device: str,
    emit: Emit,
    *,
    workers: int,
    unit_seconds: float = UNIT_SECONDS,
    budget: float = float("inf"),
    module: str = MODULE,
) -> bool:
    """Emit one row a unit and one for all of them; whether something passed and nothing failed."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # what the processes find
    began = time.monotonic()
    pool = Pool(units, device, workers, unit_seconds, began + budget, module, emit)
    pool.run()
    found = {name.replace(" ", "_"): pool.counts[name] for name in ("passed", "failed", "not here", "skipped")}
    seconds = {"seconds": round(time.monotonic() - began, 2), "cpu_seconds": round(pool.cpu_seconds, 2)}
    emit({"units": len(units), "workers": workers, "processes": pool.started, **found, **seconds})
    return bool(pool.counts["passed"]) and not pool.counts["failed"]


def shown(row: Row) -> str:
    if "units" in row:
        return "checks: " + ", ".join(f"{name} {value}" for name, value in row.items())
    what = " ".join(row[key] for key in ("backend", "check", "group") if row[key])
    return f"checks: {what}: {row['result']}, {row['seconds']} s" + (f": {row['why']}" if "why" in row else "")


def names(only: str, module: str = MODULE) -> list[str]:
    """Units of a set (captured, ops, all), or whose name contains ``only``."""
    for place in (ROOT, Path(module).parent):
        sys.path.insert(0, str(place))
    checks = importlib.import_module(Path(module).stem)
    return list(checks.SETS.get(only, [name for name in checks.UNITS if only in name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", required=True, help="cuda, triton, cpp or eager; several with commas")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default="all", help="captured, ops, all, or a part of the units' names")
    parser.add_argument("--workers", type=int, help="processes (default: cores less 4, 12 at most; 1 for captured)")
    parser.add_argument("--unit-seconds", type=float, default=UNIT_SECONDS)
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds of all; the rest is skipped and named"
    )
    parser.add_argument("--to", type=Path, required=True, help="rows are appended to this file")
    given = parser.parse_args()
    units = [(backend, name) for name in names(given.only) for backend in given.backend.split(",")]
    if not units:
        parser.error(f"no unit's name contains {given.only!r}")
    spare = 1 if given.only == "captured" else min(12, max(1, (os.cpu_count() or 2) - 4))
    emit = writer(given.to, "checks", shown)
    good = run(
        units,
        given.device,
        emit,
        workers=given.workers or spare,
        unit_seconds=given.unit_seconds,
        budget=given.budget,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
