"""What a call brought back, as committed results and tables.

    python -m benchmarks.gpu.report first FOLDER    rows of a call -> benchmarks/results/<card>/first.jsonl and first.md
    python -m benchmarks.gpu.report                 the column "measured" of docs/gpu.md, from the committed results

The first does the second too. FOLDER holds the *.jsonl that run.sh wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import rows as lines
from .environment import ROOT, slug
from .rows import Row

RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs/gpu.md"
CALLS = ("first", "second")
BEGIN, END = "<!-- expectations -->", "<!-- end of expectations -->"
NOT_MEASURED = "not measured"
#: Rows of a table that is shown whole: of more (epochs, ticks) the first and last, all of them are in the JSONL file.
LONGEST = 40


# ---- expectations


@dataclass(frozen=True)
class Expectation:
    """One line of the table in docs/gpu.md.

    Attributes:
        expected: computed for an H100 before any GPU ran it.
        goal: what it has to reach.
        measured: from all rows of a card; ``None`` where they do not tell.
    """

    what: str
    expected: str
    goal: str
    measured: Callable[[list[Row]], str | None]


def _timed(op: str, size: str, cache: str, of_copy: bool = False) -> Callable[[list[Row]], str | None]:
    where = {"op": op, "size": size, "cache": cache, "dtype": "float32", "variant": "", "backend": "cuda"}

    def measured(rows: list[Row]) -> str | None:
        row = first(rows, stage="times", result="timed", tick="auto", **where)
        if row is None:
            return None
        share = f", {row['share_of_copy']['median']:.2f} of the copy" if of_copy else ""
        return duration(row["time_us"]["median"]) + share

    return measured


def _milliseconds(rows: list[Row], capture: str) -> float | None:
    row = first(rows, stage="searches", what="iteration", capture=capture)
    return None if row is None else row.get("milliseconds")


def _iteration(rows: list[Row]) -> str | None:
    found = _milliseconds(rows, "auto")
    return None if found is None else f"{found:.3g} ms"


def _replays_over_while(rows: list[Row]) -> str | None:
    replays, one_launch = (_milliseconds(rows, capture) for capture in ("auto", "while"))
    return f"{replays / one_launch:.3g}" if replays and one_launch else None


def _found(stage: str, **where: Any) -> Callable[[list[Row]], str | None]:
    """How a search ended and when, and what its certificate says."""

    def measured(rows: list[Row]) -> str | None:
        search = first(rows, stage=stage, what="search", **where)
        if search is None or "ended" not in search:
            return None
        proof = first(rows, stage=stage, what="certificate", **where) or {}
        took = search.get("find_seconds", search["seconds"]) + search.get("prepare_seconds", 0.0)
        return f"{search['ended']} in {took:.3g} s, {proof.get('verdict', 'no certificate')}"

    return measured


EXPECTATIONS = (
    Expectation("`tick_`, own moments, LeNet5, warm", "12–16 µs", "", _timed("tick_", "LeNet5", "warm")),
    Expectation("`tick_`, own moments, ResNet18, cold", "75–90 µs", "", _timed("tick_", "ResNet18", "cold")),
    Expectation("`tick_`, own moments, 100 M", "0.72 ms", "≥ 0.9 of the copy", _timed("tick_", "100M", "cold", True)),
    Expectation("`tick_`, own moments, 1 B", "", "≥ 0.9 of the copy", _timed("tick_", "1B", "cold", True)),
    Expectation("`sgd_`, LeNet5, warm", "4–5 µs", "", _timed("sgd_", "LeNet5", "warm")),
    Expectation("`sgd_`, ResNet18, cold", "80–85 µs", "", _timed("sgd_", "ResNet18", "cold")),
    Expectation("`sgd_`, 100 M", "0.72 ms", "≥ 0.9 of the copy", _timed("sgd_", "100M", "cold", True)),
    Expectation("`sgd_`, 1 B", "", "≥ 0.9 of the copy", _timed("sgd_", "1B", "cold", True)),
    Expectation("a correction iteration of LeNet5, replayed", "", "≤ 0.15 ms", _iteration),
    Expectation("its time over that of a WHILE graph's", "", "≤ 1.2: WHILE goes", _replays_over_while),
    Expectation("a path between two LeNet5, replayed", "", "≤ 2 s, connected", _found("searches", capture="auto")),
    Expectation("a path between two ResNet18 (CIFAR-10)", "", "connected in the call", _found("networks")),
)


def expectations(results: Path | None = None) -> str:
    """The table, with a column for each card that has results."""
    cards = {
        folder.name: committed(folder) for folder in sorted((results or RESULTS).iterdir()) if list(_files(folder))
    }
    head = ["", "expected on an H100 (computed)", "goal", *([f"measured: {card}" for card in cards] or ["measured"])]
    table = [row(head), row(["---"] * len(head))]
    for line in EXPECTATIONS:
        measured = [line.measured(found) or NOT_MEASURED for found in cards.values()] or [NOT_MEASURED]
        table.append(row([line.what, line.expected, line.goal, *measured]))
    return "\n".join(table)


def fill(text: str, table: str) -> str:
    """docs/gpu.md with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _files(folder: Path) -> Iterable[Path]:
    return (folder / f"{call}.jsonl" for call in CALLS if (folder / f"{call}.jsonl").is_file())


def committed(folder: Path) -> list[Row]:
    return [found for file in _files(folder) for found in lines.read(file)]


# ---- one call


def markdown(call: str, rows: list[Row]) -> str:
    """Where it ran, how the stages ended, and a table of each kind of row."""
    where = next(found for found in rows if found["stage"] == "environment")
    changed = {True: " with changes", False: "", None: " (with changes or without is not known)"}[where["changed"]]
    text = [
        f"# {where['device']}: {call} call",
        "",
        f"Driver {where['driver']}, torch {where['torch']}, triton {where['triton']}, Python {where['python']}; commit "
        f"{where['commit']}{changed}, sources {where['sources']}; {where['date']}.",
    ]
    text += section("Stages", [found for found in rows if found["stage"] == "run"], "name", "result", "seconds")
    text += section("Test program", of(rows, "program"), "tool", "cases", "result", "said", "why", "seconds")
    text += times(of(rows, "times"))
    text += checks(of(rows, "checks"))
    text += section("Kernels, by ncu", of(rows, "counters"))
    for stage in ("searches", "networks"):
        for what in dict.fromkeys(found["what"] for found in of(rows, stage)):
            text += section(
                f"{stage.capitalize()}: {what}", [found for found in of(rows, stage) if found["what"] == what]
            )
    return "\n".join(text) + "\n"


def times(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    head = ["op", "size", "storage", "variant", "plan", "backend", "cache", "µs (quartiles)", "GB/s"]
    head += ["of copy", "read, triad, copy GB/s", "others' time over it"]
    table = [row(head), row(["---"] * len(head))]
    for found in rows:
        cells = [found.get(key, "") for key in ("op", "size", "dtype", "variant", "tick", "backend", "cache")]
        if "time_us" in found:
            kinds = ("read", "triad", "copy") if "share_of_copy" in found else ()
            ceilings = ", ".join(f"{found[f'{kind}_gb_per_s']:g}" for kind in kinds)
            share = f"{found['share_of_copy']['median']:.2f}" if kinds else ""
            others = ", ".join(f"{name} {ratio['median']:.3g}" for name, ratio in found["slower"].items())
            cells += [quartiles(found["time_us"]), found.get("gb_per_s", ""), share, ceilings, others]
        elif "warm_us" in found:
            cells += [f"warm {quartiles(found['warm_us'])}, cold {quartiles(found['cold_us'])}", "", "", "", ""]
        else:
            cells += [verdict(found), "", "", "", ""]
        table.append(row(cells))
    return [
        "",
        "## Times",
        "",
        "Cold: each call after the level-2 cache was flushed, one graph replay between two events. Warm: a graph of 20 "
        "calls, a call's share. GB/s: bytes that a call cannot avoid, each input and output once. Of copy: time of a "
        "copy that moves as many bytes as the call (a tick of own moments reads p and d twice where they do not fit on "
        "the chip: five words; where they do, the share may pass 1).",
        "",
        *table,
    ]


def checks(rows: list[Row]) -> list[str]:
    """How many passed of each backend, and every other one by name."""
    if not rows:
        return []
    counts = Counter((found.get("backend", ""), found.get("result", "")) for found in rows if "result" in found)
    text = section("Checks", [{"backend": b, "result": r, "checks": n} for (b, r), n in sorted(counts.items())])
    found = [r for r in rows if "found" in r]
    text += section("What checks counted", found, "check", "group", "backend", "found")
    bad = [r for r in rows if r.get("result") not in ("passed", None)]
    return text + section("Checks that did not pass", bad, "check", "group", "backend", "result", "why")


def section(title: str, rows: list[Row], *keys: str) -> list[str]:
    """A table of the rows' fields, all where none is named, in the order in which they come; of many rows the ends."""
    if not rows:
        return []
    keys = keys or tuple(dict.fromkeys(key for found in rows for key in found if key not in ("stage", "what")))
    cells = [row(found.get(key, "") for key in keys) for found in rows]
    if len(rows) > LONGEST:
        cells[LONGEST // 2 : -LONGEST // 2] = [row(["…"] * len(keys))]
    return ["", f"## {title}", "", row(keys), row(["---"] * len(keys)), *cells]


# ---- small things


def of(rows: list[Row], stage: str) -> list[Row]:
    return [found for found in rows if found["stage"] == stage]


def first(rows: list[Row], **where: Any) -> Row | None:
    return next((found for found in rows if all(found.get(key) == value for key, value in where.items())), None)


def row(cells: Iterable[Any]) -> str:
    texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", "/").replace("\n", " ") for text in texts) + " |"


def verdict(found: Row) -> str:
    return found["result"] + (f": {found['why']}" if found.get("why") else "")


def quartiles(found: dict[str, float]) -> str:
    return f"{found['median']:.4g} ({found['q1']:.3g}–{found['q3']:.3g})"


def duration(microseconds: float) -> str:
    return f"{microseconds:.3g} µs" if microseconds < 100 else f"{microseconds / 1e3:.3g} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("call", nargs="?", choices=CALLS)
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args()
    if given.call and not given.folder:
        parser.error("which folder?")
    if given.call:
        files = sorted(given.folder.glob("*.jsonl"))
        # A search's own metrics may lie there too.
        rows = [found for file in files for found in lines.read(file) if isinstance(found.get("stage"), str)]
        where = first(rows, stage="environment")
        if where is None or where["device"].startswith("CPU"):
            print("report: no row of a GPU's environment: nothing written", file=sys.stderr)
            return 1
        to = RESULTS / slug(where["device"])
        to.mkdir(exist_ok=True)
        lines.write(to / f"{given.call}.jsonl", rows)
        (to / f"{given.call}.md").write_text(markdown(given.call, rows), encoding="utf-8")
        print(f"written: {to.relative_to(ROOT)}/{given.call}.jsonl, {given.call}.md")
    DOCS.write_text(fill(DOCS.read_text(encoding="utf-8"), expectations()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
