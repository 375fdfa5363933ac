"""Many paths in one command: all checked first, then searched one after the other or several at once, then a table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError, one_line
from .find import ending, tick_text
from .output import Progress, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..find import FindResult, SearchJob, StackedFinder, TickProgress
    from ..find.pairing import Pair
    from .search import SearchSetup


@dataclass(frozen=True)
class _Pending:
    """A path to search: its place in the table, its run's folder name, its ends, and whether there is one to resume."""

    number: int
    name: str
    pair: Pair
    again: bool


@dataclass(frozen=True)
class Row:
    """One line of the table: the run's folder name, how it ended, numbers (None where it never ended), notes."""

    name: str
    ended: str
    good: bool
    ticks: int | None = None
    sgd_steps: int | None = None
    seconds: float | None = None
    waypoints: int | None = None
    notes: tuple[str, ...] = ()


def find_many(
    search: SearchSetup,
    starts: str,
    destinations: str | None,
    pairing: str | None,
    out: Path,
    *,
    parallel: int | None = None,
    resume: bool,
    quiet: bool,
) -> list[Row]:
    """Search the paths between ``starts`` and ``destinations`` (files or folders) into folders inside ``out``.

    ``parallel`` of them at a time; None: as many as is faster.

    Every file is loaded and compared with the recipe's network, and every run folder is looked at, before the first
    search begins (LLPFError). A search that fails afterwards is reported, and the others go on.
    """
    from ..find.pairing import run_names

    pairs, equal, digests = _choose(search, starts, destinations, pairing)
    names = run_names(pairs, search.settings.mode)
    done = {name: _finished(search, out / name, pair, digests, resume) for name, pair in zip(names, pairs, strict=True)}
    for pair in equal:
        print(f"left out: {pair.start} and {pair.destination} hold the same model", file=sys.stderr)
    rows = {name: row for name, row in done.items() if row is not None}
    pending = [
        _Pending(number, name, pair, resume and (out / name / "run.yaml").exists())
        for number, (name, pair) in enumerate(zip(names, pairs, strict=True), start=1)
        if name not in rows
    ]
    stacked = search.stacked_finder(parallel, len(pending))
    if stacked is None:
        rows |= _in_turn(search, pending, len(pairs), out, quiet)
    else:
        rows |= _at_once(search, stacked, pending, out, quiet)
    return [rows[name] for name in names]


def _in_turn(search: SearchSetup, pending: list[_Pending], total: int, out: Path, quiet: bool) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    with Progress("tick", quiet=quiet, upper_bound=True) as progress:

        def show(at: TickProgress) -> None:
            progress.update(at.tick, at.max_ticks, tick_text(at))

        for path in pending:
            progress.begin(f"path {path.number}/{total} {path.name}")
            try:
                result = search.run(path.pair, out / path.name, resume=path.again, progress=show)
                rows[path.name] = _row(path.name, result, search)
            except LLPFError as error:
                rows[path.name] = _failed(path.name, error, progress)
    return rows


def _at_once(
    search: SearchSetup, finder: StackedFinder, pending: list[_Pending], out: Path, quiet: bool
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    steps: dict[str, int] = {}
    with Progress("path", quiet=quiet) as progress:

        def shown_as(name: str) -> Callable[[TickProgress], None]:
            def show(at: TickProgress) -> None:
                steps[name] = at.steps
                under_way = len(steps.keys() - rows.keys())
                progress.update(len(rows), len(pending), f"{under_way} at once  {sum(steps.values()):,} SGD steps")

            return show

        def jobs() -> Iterator[SearchJob]:
            for path in pending:
                yield search.job(path.pair, out / path.name, resume=path.again, progress=shown_as(path.name))

        for job, ended in finder.run(jobs()):
            name = Path(job.out).name
            if isinstance(ended, LLPFError):
                rows[name] = _failed(name, ended, progress)
            else:
                rows[name] = _row(name, ended, search)
            progress.update(len(rows), len(pending), f"{sum(steps.values()):,} SGD steps")
    return rows


def _failed(name: str, error: LLPFError, progress: Progress) -> Row:
    progress.print_line(f"llpf: error: {name}: {one_line(error)}")
    return Row(name, "failed", good=False)


def _choose(
    search: SearchSetup, starts: str, destinations: str | None, pairing: str | None
) -> tuple[list[Pair], list[Pair], dict[Path, str]]:
    """The pairs to join, those left out as equal, and the digest of every file."""
    from ..find.pairing import Pair, make_pairs, model_files
    from ..path import state_digest

    first = model_files(starts)
    last = None if destinations is None else model_files(destinations)
    if last is None and pairing is not None:
        raise LLPFError(f"--pairing {pairing} needs destinations; without them there is one path a start")
    if last is not None and pairing is None:
        raise LLPFError(
            f"{starts} and {destinations}: say which models to join, --pairing each-to-each, all-to-all, one-to-all or "
            "all-to-one"
        )
    # One at a time: a folder may hold more than fits in memory.
    digests = {file: state_digest(search.load(file)) for file in dict.fromkeys([*first, *(last or ())])}
    if last is None or pairing is None:
        return [Pair(file, None) for file in first], [], digests
    found = make_pairs(first, last, pairing, digests)
    return found.pairs, found.equal, digests


def _finished(search: SearchSetup, folder: Path, pair: Pair, digests: dict[Path, str], resume: bool) -> Row | None:
    """The row of a run that is complete already, None where there is something to do.

    LLPFError when the folder holds something and nothing is to be resumed, or another search than this one.
    """
    from ..path import RunDirectory

    if not (folder / "run.yaml").exists():
        if folder.exists() and not (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())):
            raise LLPFError(f"{folder} is not the folder of a run, and not empty; choose another --out")
        return None
    if not resume:
        raise LLPFError(f"{folder} holds a run; choose another --out, or continue with --resume")
    run = RunDirectory.open(folder)
    wanted = {"settings": search.settings.as_dict(), "start_sha256": digests[pair.start]}
    if pair.destination is not None:
        end = "destination" if search.settings.goal == "model" else "sphere"
        wanted[f"{end}_sha256"] = digests[pair.destination]
    for key, value in wanted.items():
        if run.run.get(key) != value:
            raise LLPFError(f"cannot resume {folder}: its {key} differ from those given now")
    search.check_loss(folder)
    status = run.status
    if status is None:
        return None
    good = bool(status.get("arrived")) or search.endless
    return Row(
        folder.name,
        "complete already" if good else "complete already, did not arrive",
        good,
        status.get("ticks"),
        status.get("sgd_steps"),
        status.get("seconds"),
        status.get("waypoints"),
        tuple(status.get("notes") or ()),
    )


def _row(name: str, result: FindResult, search: SearchSetup) -> Row:
    ended, good = ending(result, search.endless)
    return Row(name, ended, good, result.ticks, result.sgd_steps, result.seconds, result.waypoints, result.notes)


def show_table(rows: Sequence[Row]) -> None:
    """One row a path, and below them their notes, on stdout."""
    from .output import print_table

    columns = {"path": False, "result": False, "ticks": True, "SGD steps": True, "waypoints": True, "time": True}
    cells = []
    for row in rows:
        numbers = ["" if n is None else f"{n:,}" for n in (row.ticks, row.sgd_steps, row.waypoints)]
        cells.append([row.name, row.ended, *numbers, "" if row.seconds is None else duration(row.seconds)])
    # Wide enough for the longest names, so that nothing is cut.
    print_table(columns, cells, 80 + max(len(row.name) for row in rows))
    for row in rows:
        for note in row.notes:
            print(f"{row.name}: {note}")
