"""The tables of docs/performance.md, from the committed measurements.

python docs/performance.py          # prints the block
python docs/performance.py --write  # puts it into docs/performance.md
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
BEGIN = "<!-- measured:begin: written by docs/performance.py from benchmarks/results/cpu -->"
END = "<!-- measured:end -->"

#: Row of bench.json and what the page calls it.
_TICKS = [
    ({"size": "LeNet5", "variant": "", "cache": "warm"}, "LeNet5, warm cache, a whole call"),
    ({"size": "ResNet18", "variant": "", "cache": "cold"}, "ResNet18"),
    ({"size": "ResNet50", "variant": "", "cache": "cold"}, "ResNet50"),
    ({"size": "100M", "variant": "", "cache": "cold"}, "100 M in one segment"),
    ({"size": "100M", "variant": "moments_in", "cache": "cold"}, "100 M, moments at hand (3 words)"),
    ({"size": "268M", "variant": "", "cache": "cold"}, "268 M"),
    ({"size": "1B", "variant": "", "cache": "cold"}, "1,000 M"),
]


def block() -> str:
    """The block between the two markers, without them."""
    parts = (
        steps(_read("kernel-steps.json")),
        ticks(_rows()),
        searches(_read("search-cost.json")),
        together(_read("together.json")),
        corrections(_read("correction.json")),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def steps(result: dict[str, Any]) -> list[str]:
    """What each step was worth."""
    places = result["places"]
    names = list(next(iter(places.values()))["ns_per_element"])
    lines = [
        f"Nanoseconds an element, median (quartiles), `python -m benchmarks.studies.kernel_steps`, {_where(result)}:",
        "",
        f"| loop | {' | '.join(places)} |",
        f"|---|{'---|' * len(places)}",
    ]
    for name in names:
        found = [place["ns_per_element"][name] for place in places.values()]
        cells = [f"{v['median']:.2f} ({v['low']:.2f}–{v['high']:.2f})" for v in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def ticks(rows: list[dict[str, Any]]) -> list[str]:
    """``tick_`` against its floor and against plain torch."""
    files = " and ".join(f"`{file.name}`" for file in _files())
    lines = [
        f"`tick_`, float32, from {files} (`llpf bench`), {_where(_read(_files()[0].name))}:",
        "",
        "| parameters | threads | µs | share of the floor | times faster than |",
        "|---|---|---|---|---|",
    ]
    for where, name in _TICKS:
        for row in rows:
            if row["op"] != "tick_" or row["dtype"] != "float32" or any(row.get(k) != v for k, v in where.items()):
                continue
            others = ", ".join(f"{other} {value['median']:.3g}" for other, value in row["slower"].items())
            share = f"{row['share_of_floor']['median']:.2f}" if where["cache"] == "cold" else "in the cache"
            lines.append(f"| {name} | {row['threads']} | {row['time_us']['median']:,.4g} | {share} | {others or '–'} |")
    return lines


def searches(result: dict[str, Any]) -> list[str]:
    """Gradient steps and seconds of five pairs beside the authors' settings."""
    authors = result["authors"]
    lines = [
        f"LeNet5/MNIST, model to model, recipe `{result['recipe']}`, threshold {result['settings']['threshold']}, from "
        f"`search-cost.json` (`python -m benchmarks.studies.search_cost`), {result['environment']['machine']}, "
        "one thread:",
        "",
        "| pair | ticks | gradient steps of 64 | seconds to find | highest certified training loss |",
        "|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        names = " → ".join(run[end].removesuffix(".model.pt") for end in ("start", "destination"))
        lines.append(
            f"| {names} | {run['ticks']} | {run['sgd_steps']} | {run['seconds']:.1f} | {run['max_train_loss']:.4f} |"
        )
    fewer, faster = result["fewer_steps_than_the_authors"], result["faster_than_the_authors"]
    return [
        *lines,
        "",
        f"Medians: {result['median_sgd_steps']:g} steps, {fewer:.0f} times fewer than the authors' 150,000; "
        f"{result['median_seconds']:.1f} s, {faster:.0f} times less than their settings cost here "
        f"({authors['seconds_per_tick']:.3f} s a tick, measured over {authors['ticks']} ticks with per-layer eager "
        "parameter work, DataLoader and augmentation, without their evaluation at every tick).",
    ]


def together(result: dict[str, Any]) -> list[str]:
    """Whole searches in turn and as one stack."""
    turn, stack = (result["runs"][name] for name in ("in turn", "as one stack"))
    seconds = [statistics.median(run["seconds"] for run in runs) for runs in (turn, stack)]
    gain = result["median_gain"]["seconds"]
    return [
        f"{result['paths']} paths between perceptrons on the digits (`{result['recipe']}`), from `together.json` "
        f"(`python -m benchmarks.studies.stacked_searches`), {_where(result)}: {seconds[0]:.1f} s in turn, "
        f"{seconds[1]:.1f} s as one stack, {gain:.2f} times faster, judging and files included.",
    ]


def corrections(result: dict[str, Any]) -> list[str]:
    """An iteration's passes in each setting, and the engine's part of it."""
    return [
        "Processor time of a correction's parts, one thread, batches of 64, medians (quartiles), from "
        f"`correction.json` (`python -m benchmarks.studies.correction_costs`), {_where(result)}:",
        "",
        "| LeNet5, forward and backward | ms |",
        "|---|---|",
        *(f"| {name} | {_spread(found)} |" for name, found in result["passes_ms"].items()),
        "",
        "| LeNet5, whole iteration | ms |",
        "|---|---|",
        *(f"| {name} | {_spread(found)} |" for name, found in result["iteration_ms"].items()),
    ]


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:,.3g} ({found['q1']:,.3g}–{found['q3']:,.3g})"


def _where(result: dict[str, Any]) -> str:
    found = result["environment"]
    return (
        f"{found['machine']}, {found['kernels']}, torch {found['torch']}, commit {found['commit'][:12]}, "
        f"{found['date'][:10]}, load before {found['load_before']}"
    )


def _files() -> list[Path]:
    found = [RESULTS / name for name in ("bench.json", "large.json") if (RESULTS / name).is_file()]
    return found or [RESULTS / "quick.json"]


def _rows() -> list[dict[str, Any]]:
    return [row for file in _files() for row in _read(file.name)["rows"]]


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def page(text: str, new: str) -> str:
    """``text`` with ``new`` between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{new}{END}{after}"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(), block()))
    else:
        print(block(), end="")


if __name__ == "__main__":
    main()
