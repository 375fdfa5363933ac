"""A run as JSON, as Markdown, and as the plot of bandwidth against size."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from ..goals import goals
from . import throughput
from .case import Row

Result = dict[str, Any]
#: A row is marked where its thread had less than this share of a processor (several threads: of three quarters of their
#: number, since they also wait for one another).
UNDISTURBED = 0.9


def markdown(result: Result) -> str:
    rows: list[Row] = result["rows"]
    return "\n".join([*_head(result), *goal_table(rows), *throughput.table(rows), *_tables(rows)]) + "\n"


def _head(result: Result) -> list[str]:
    where = result["environment"]
    changed = ", with uncommitted changes" if where["changed"] else ""
    gibi = where["last_level_cache"] / (1 << 20)
    lines = [
        f"# {where['machine']}",
        "",
        f"{where['processors']} processors, last-level cache {gibi:.0f} MiB; torch {where['torch']}, Python "
        f"{where['python']}, kernels {where['kernels']}; commit {where['commit'][:12]}{changed} (sources "
        f"{where['sources']}), {where['date']}. Load of the machine before {where['load_before']}, after "
        f"{where['load_after']} (the suite itself is 1 or 2 of it).",
        "",
        "Times are medians with quartiles over rounds in which everything named in a row takes its turn; ratios and "
        "shares are medians of each round's share. Every result was compared with float64 arithmetic first. "
        "docs/benchmarks.md explains the columns.",
    ]
    return [*lines, *(f"- {note}" for note in result["notes"])]


def goal_table(rows: list[Row]) -> list[str]:
    lines = ["", "## Goals", "", "| figure | wanted | measured | |", "|---|---|---|---|"]
    count = len(lines)
    for goal in goals():
        for _, value in goal.of(rows):
            verdict = "met" if goal.met(value) else "**missed**"
            lines.append(f"| {goal.what} | {goal.wanted} | {value:.3g}{goal.unit} | {verdict} |")
    return lines if len(lines) > count else []


def _tables(rows: list[Row]) -> list[str]:
    lines = []
    disturbed = [row for row in rows if _disturbed(row)]
    if disturbed:
        lines += ["", f"{len(disturbed)} of {len(rows)} rows were disturbed: marked ! below, for what they are worth."]
    for op, of_op in groupby(rows, key=lambda row: row["op"]):
        lines += [
            "",
            f"## {op}",
            "",
            "| size | storage | variant | backend | threads | cache | µs (quartiles) | GB/s | read, triad, copy GB/s "
            "| share of floor (quartiles) | slower by (quartiles) |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in of_op]
    return lines


def _disturbed(row: Row) -> bool:
    """Whether other programs had a good part of the machine; one thread tells it best."""
    had = row.get("processors_had")
    return had is not None and had < UNDISTURBED * (1 if row["threads"] == 1 else 0.75 * row["threads"])


def _line(row: Row) -> str:
    share, bandwidths = "", ""
    if "share_of_floor" in row:
        share = _spread(row["share_of_floor"])
        bandwidths = ", ".join(f"{row[f'{kind}_gb_per_s']:.1f}" for kind in ("read", "triad", "copy"))
    slower = "; ".join(f"{name} {_spread(quartiles)}" for name, quartiles in row["slower"].items())
    cells = [
        row["size"] + "!" * _disturbed(row),
        row["dtype"],
        row["variant"],
        row["backend"],
        row["threads"],
        row["cache"],
    ]
    cells += [_spread(row["time_us"]), row.get("gb_per_s", ""), bandwidths, share, slower]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _spread(quartiles: dict[str, float]) -> str:
    return f"{quartiles['median']:.4g} ({quartiles['q1']:.3g}–{quartiles['q3']:.3g})"


def line(row: Row) -> str:
    """One row for the terminal."""
    named = [row["op"], row["size"], row["dtype"], row["variant"], row["cache"], row["backend"]]
    text = f"{' '.join(part for part in named if part)}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}: "
    text += f"{_spread(row['time_us'])} µs"
    if "share_of_floor" in row:
        text += f", {row['share_of_floor']['median']:.2f} of the floor"
    if _disturbed(row):
        text += " (disturbed)"
    return text + "".join(f", {name} {quartiles['median']:.3g}x" for name, quartiles in row["slower"].items())


def write(result: Result, out: Path) -> list[Path]:
    """bench.json, bench.md and, where several sizes were timed, bandwidth.png and throughput.png in folder ``out``.

    A ``large.json`` that lies there (what ``--large`` wrote elsewhere, renamed) adds its sizes to the picture, if it is
    of the same machine, kernels and torch.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "bench.json", out / "bench.md"]
    written[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    picture = out / "bandwidth.png"
    if plot(result | {"rows": result["rows"] + _large(result, out / "large.json")}, picture):
        text += "\n![Bandwidth of a tick against size](bandwidth.png)\n"
        written.append(picture)
    picture = out / "throughput.png"
    if throughput.plot(result["rows"], result["environment"]["machine"], picture):
        text += "\n![Iterations a second against paths at once](throughput.png)\n"
        written.append(picture)
    written[1].write_text(text, encoding="utf-8")
    return written


def _large(result: Result, file: Path) -> list[Row]:
    if not file.is_file():
        return []
    large = json.loads(file.read_text(encoding="utf-8"))
    same = all(large["environment"][key] == result["environment"][key] for key in ("machine", "kernels", "torch"))
    return list(large["rows"]) if same else []


def plot(result: Result, to: Path) -> bool:
    """Bytes of the floor a second against parameters, with the speed of the floor and the baselines; False: too few."""
    rows = [
        row
        for row in result["rows"]
        if (row["op"], row["dtype"], row["variant"], row["cache"]) == ("tick_", "float32", "", "cold")
        and row["backend"] != "eager"
        and row["threads"] == 1
        and "floor_us" in row
    ]
    rows = sorted({row["size"]: row for row in rows}.values(), key=lambda row: row["parameters"])
    if len(rows) < 3:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [row["parameters"] for row in rows]

    def speeds(key: str) -> list[list[float]]:
        return [[row["floor_bytes"] / row[key][q] / 1e3 for row in rows] for q in ("median", "q3", "q1")]

    for key, label, style in (("floor_us", "floor: reads and triads, same run", "--"), ("time_us", "tick_", "-o")):
        median, low, high = speeds(key)
        (drawn,) = axes.plot(sizes, median, style, label=label)
        axes.fill_between(sizes, low, high, alpha=0.2, color=drawn.get_color(), linewidth=0)
    axes.plot(sizes, [row["copy_gb_per_s"] for row in rows], ":", color="grey", label="copy, same run")
    for name in ("per-layer eager", "torch._foreach", "torch.compile, flat", "authors-like"):
        compared = [row for row in rows if name in row["slower"]]
        speed = [row["floor_bytes"] / row["times_us"][name]["median"] / 1e3 for row in compared]
        if compared:
            axes.plot([row["parameters"] for row in compared], speed, "s", markersize=5, label=name)
    axes.set(xscale="log", xlabel="parameters", ylabel="GB/s (5 words a parameter)", ylim=(0, None))
    where = result["environment"]
    axes.set_title(f"One tick on cold memory, float32, one thread\n{where['machine']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(to, dpi=150)
    return True
