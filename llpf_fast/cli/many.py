"""Many paths in one command: check all, search them one by one or in parallel, print a table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError, one_line
from .output import Progress, duration
from .search import describe_end, describe_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..find import FindResult, SearchJob, StackedFinder, TickProgress
    from ..find.pairing import Pair
    from .search import SearchSetup


@dataclass(frozen=True)
class _Pending:
    """A path to search; ``number`` is its row in the table, ``name`` the run's folder in ``out``."""

    number: int
    name: str
    pair: Pair
    resume: bool


@dataclass(frozen=True)
class Row:
    """A row of the table; ``name`` is the run's folder, numbers are None where the search failed."""

    name: str
    outcome: str
    succeeded: bool
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

    Every file and every run folder is checked before the first search begins. A search that fails afterwards is
    reported, and the others go on.

    Args:
        parallel: searches at a time; None for the number that is fastest.

    Returns:
        A row for each path.

    Raises:
        LLPFError: a file is not of the recipe's network, a run folder is in use, contradicting options.
    """
    from ..find.pairing import run_names

    pairs, equal, digests = _choose_pairs(search, starts, destinations, pairing)
    names = run_names(pairs, search.settings.mode)
    complete = {
        name: _complete_row(search, out / name, pair, digests, resume) for name, pair in zip(names, pairs, strict=True)
    }
    for pair in equal:
        print(f"left out: {pair.start} and {pair.destination} hold the same model", file=sys.stderr)
    rows = {name: row for name, row in complete.items() if row is not None}
    pending = [
        _Pending(number, name, pair, resume and (out / name / "run.yaml").exists())
        for number, (name, pair) in enumerate(zip(names, pairs, strict=True), start=1)
        if name not in rows
    ]
    stacked = search.stacked_finder(parallel, len(pending))
    if stacked is None:
        rows |= _search_one_by_one(search, pending, len(pairs), out, quiet)
    else:
        rows |= _search_in_parallel(search, stacked, pending, out, quiet)
    return [rows[name] for name in names]


def _search_one_by_one(
    search: SearchSetup, pending: list[_Pending], total: int, out: Path, quiet: bool
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    with Progress("tick", quiet=quiet, upper_bound=True) as progress:

        def show(at: TickProgress) -> None:
            progress.update(at.tick, at.max_ticks, describe_tick(at))

        for path in pending:
            progress.begin(f"path {path.number}/{total} {path.name}")
            try:
                result = search.run(path.pair, out / path.name, resume=path.resume, progress=show)
                rows[path.name] = _row(path.name, result, search)
            except LLPFError as error:
                rows[path.name] = _failed(path.name, error, progress)
    return rows


def _search_in_parallel(
    search: SearchSetup, finder: StackedFinder, pending: list[_Pending], out: Path, quiet: bool
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    steps: dict[str, int] = {}
    with Progress("path", quiet=quiet) as progress:

        def progress_of(name: str) -> Callable[[TickProgress], None]:
            def show(at: TickProgress) -> None:
                steps[name] = at.steps
                running = len(steps.keys() - rows.keys())
                taken = sum(steps.values())
                progress.update(len(rows), len(pending), f"{running} in parallel  {taken:,} gradient steps")

            return show

        def jobs() -> Iterator[SearchJob]:
            for path in pending:
                yield search.job(path.pair, out / path.name, resume=path.resume, progress=progress_of(path.name))

        for job, result in finder.run(jobs()):
            name = Path(job.out).name
            if isinstance(result, LLPFError):
                rows[name] = _failed(name, result, progress)
            else:
                rows[name] = _row(name, result, search)
            progress.update(len(rows), len(pending), f"{sum(steps.values()):,} gradient steps")
    return rows


def _failed(name: str, error: LLPFError, progress: Progress) -> Row:
    progress.print_line(f"llpf: error: {name}: {one_line(error)}")
    return Row(name, "failed", succeeded=False)


def _choose_pairs(
    search: SearchSetup, starts: str, destinations: str | None, pairing: str | None
) -> tuple[list[Pair], list[Pair], dict[Path, str]]:
    """The pairs to join, the pairs of equal models, which are left out, and the digest of every file."""
    from ..find.pairing import Pair, make_pairs, model_files
    from ..path import state_digest

    first = model_files(starts)
    last = None if destinations is None else model_files(destinations)
    if last is None and pairing is not None:
        raise LLPFError(f"--pairing {pairing} needs destinations; without them each start has one path")
    if last is not None and pairing is None:
        raise LLPFError(
            f"{starts} and {destinations}: say which models to join, --pairing each-to-each, all-to-all, one-to-all or "
            "all-to-one"
        )
    # One after the other: the models of a folder may not fit in memory together.
    digests = {file: state_digest(search.load(file)) for file in dict.fromkeys([*first, *(last or ())])}
    if last is None or pairing is None:
        return [Pair(file, None) for file in first], [], digests
    joined = make_pairs(first, last, pairing, digests)
    return joined.pairs, joined.equal, digests


def _complete_row(search: SearchSetup, folder: Path, pair: Pair, digests: dict[Path, str], resume: bool) -> Row | None:
    """The row of a run that is complete already; None where there is something to search or to mend.

    Raises:
        LLPFError: the folder is not empty and ``resume`` is not set, or it holds another search.
    """
    from ..find.mend import find_fault
    from ..path import RunDirectory

    if not (folder / "run.yaml").exists():
        if folder.exists() and not (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())):
            raise LLPFError(f"{folder} is not the folder of a run, and not empty; choose another --out")
        return None
    if not resume:
        raise LLPFError(f"{folder} holds a run; choose another --out, or continue with --resume")
    run = RunDirectory.open(folder)
    expected = {"settings": search.settings.as_dict(), "start_sha256": digests[pair.start]}
    if pair.destination is not None:
        kind = "destination" if search.settings.goal == "model" else "sphere"
        expected[f"{kind}_sha256"] = digests[pair.destination]
    for key, value in expected.items():
        if run.run.get(key) != value:
            raise LLPFError(f"cannot resume {folder}: its {key} differ from those given now")
    search.check_loss(folder)
    status = run.status
    if status is None or find_fault(run)[0] is not None:
        return None
    succeeded = bool(status.get("arrived")) or search.endless
    return Row(
        folder.name,
        "complete already" if succeeded else "complete already, did not arrive",
        succeeded,
        status.get("ticks"),
        status.get("sgd_steps"),
        status.get("seconds"),
        status.get("waypoints"),
        tuple(status.get("notes") or ()),
    )


def _row(name: str, result: FindResult, search: SearchSetup) -> Row:
    outcome, succeeded = describe_end(result, search.endless)
    return Row(name, outcome, succeeded, result.ticks, result.sgd_steps, result.seconds, result.waypoints, result.notes)


def show_table(rows: Sequence[Row]) -> None:
    """Print a table with a row for each path, and their notes below it."""
    from .output import print_table

    columns = {"path": False, "result": False, "ticks": True, "gradient steps": True, "waypoints": True, "time": True}
    cells = []
    for row in rows:
        numbers = ["" if n is None else f"{n:,}" for n in (row.ticks, row.sgd_steps, row.waypoints)]
        cells.append([row.name, row.outcome, *numbers, "" if row.seconds is None else duration(row.seconds)])
    # Wide enough for the longest names, so that nothing is cut.
    print_table(columns, cells, 80 + max(len(row.name) for row in rows))
    for row in rows:
        for note in row.notes:
            print(f"{row.name}: {note}")
