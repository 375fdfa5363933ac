"""How many correction iterations a second K paths do together: a table and a plot."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from .case import OURS, Row

#: The baseline, in the same run: K of these for one call of the stack.
IN_TURN = "single paths in turn"


def variant(paths: int) -> str:
    """How a case calls its number of paths."""
    return f"{paths} path{'s' if paths > 1 else ''}"


def paths_of(variant: str) -> int:
    """The reverse."""
    return int(variant.split(" ", 1)[0])


def _rows(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Those of the case, by network, in the order of their paths."""
    selected = [row for row in rows if row["op"] == "many_paths"]
    selected.sort(key=lambda row: (row["size"], paths_of(row["variant"])))
    return [(size, list(of_size)) for size, of_size in groupby(selected, key=lambda row: row["size"])]


def _per_second(row: Row, name: str | None = None) -> float:
    """Iterations of all paths together; a row's times are those of one path's iteration."""
    return float(1e6 / (row["time_us"] if name is None else row["times_us"][name])["median"])


def _share(row: Row) -> float:
    """Paths that ran in turn."""
    return float(paths_of(row["variant"]) * row["units"][IN_TURN] / row["units"][OURS])


def table(rows: list[Row]) -> list[str]:
    """Markdown; nothing where the case was not timed."""
    lines = []
    for size, of_size in _rows(rows):
        lines += [
            "",
            f"## Many paths at once: {size}",
            "",
            "| paths | iterations/s, stacked | the same in turn | gain (quartiles) |",
            "|---|---|---|---|",
        ]
        for row in of_size:
            gain = row["slower"][IN_TURN]
            quartiles = f"{gain['median']:.3g} ({gain['q1']:.3g}–{gain['q3']:.3g})"
            speeds = f"{_per_second(row):,.0f} | {_per_second(row, IN_TURN):,.0f}"
            lines.append(f"| {paths_of(row['variant'])} | {speeds} | {quartiles} |")
        fewer = [row for row in of_size if "units" in row]
        if fewer:
            shares = ", ".join(f"{_share(row):.3g} of the {paths_of(row['variant'])} paths" for row in fewer)
            lines += ["", f"In turn, as many as these ran, and their time an iteration counts for all: {shares}."]
    return lines


def plot(rows: list[Row], machine: str, to: Path) -> bool:
    """Iterations a second against the number of paths; False: too few were timed."""
    drawn = [(size, of_size) for size, of_size in _rows(rows) if len(of_size) > 2]
    if not drawn:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    for axes, (size, of_size) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        paths = [paths_of(row["variant"]) for row in of_size]
        axes.plot(paths, [_per_second(row) for row in of_size], "-o", label="stacked")
        axes.plot(paths, [_per_second(row, IN_TURN) for row in of_size], "--s", label=IN_TURN)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="paths at once", ylabel="correction iterations a second, all paths", ylim=(0, None))
        axes.set_xticks(paths, [str(number) for number in paths])
        axes.set_title(size, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"Many paths at once, batches of 64\n{machine}", fontsize=10)
    figure.savefig(to, dpi=150)
    return True
