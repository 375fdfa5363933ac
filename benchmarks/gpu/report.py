"""The Markdown table of a run."""

from __future__ import annotations

from typing import Any


def markdown(run: dict[str, Any]) -> str:
    """What ran where, checks, times, sanitizers; times in microseconds, median with the 20th and 80th percentile."""
    environment, lines = run["environment"], []
    changed = ", with uncommitted changes" if environment.get("changed") else ""
    lines += [
        f"# {environment['device']}",
        "",
        f"Driver {environment['driver']}, torch {environment['torch']}, triton {environment['triton']}, commit "
        f"{environment['commit']}{changed} (sources {environment['sources']}), {environment['date']}.",
    ]
    if run.get("notes"):
        lines += ["", *(f"- {note}" for note in run["notes"])]
    checks = [row for row in run.get("checks", []) if "check" in row]
    if checks:
        lines += ["", "## Checks", "", "| check | backend | result | seconds |", "|---|---|---|---|"]
        lines += [f"| {r['check']} | {r['backend']} | {verdict(r)} | {r['seconds']} |" for r in checks]
    for row in run.get("checks", []):
        if "launches" in row:
            counts = ", ".join(f"{name} {count}" for name, count in row["launches"].items())
            lines += ["", f"Launches a call, {row['backend']}: {counts}."]
    lines += times(run.get("timing", []))
    sanitizer = run.get("sanitizer", [])
    if sanitizer:
        lines += ["", "## Sanitizers", "", "| tool | result | seconds |", "|---|---|---|"]
        lines += [f"| {r['tool']} | {verdict(r)} | {r.get('seconds', '')} |" for r in sanitizer]
    return "\n".join(lines) + "\n"


def verdict(row: dict[str, Any]) -> str:
    why = f": {row['why']}" if row.get("why") else ""
    return (row["result"] + why).replace("|", "/").replace("\n", " ")


def times(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "## Times", ""]
    copies = [row["copy_gb_per_s"] for row in rows if "copy_gb_per_s" in row]
    if copies:
        lines += [
            f"Copy bandwidth in the same runs, bytes read plus written: {', '.join(f'{c:g}' for c in copies)} GB/s.",
            "",
        ]
    lines += [
        "Bytes are those an op cannot avoid (each input once, each output once). Cold: level-2 cache flushed before "
        "each call, one graph replay between two events. Warm: a graph of 20 calls, a call's share. Last column: a "
        "copy of the same bytes, timed cold in the same way, over the op's cold time.",
        "",
        "| op | table | p, d | paths | backend | cold µs (20–80 %) | warm µs | GB/s | of copy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("result") == "timed":
            cold, warm = row["cold_us"], row["warm_us"]
            lines.append(
                f"| {row['op']} | {row['table']} | {row['p']}, {row['d']} | {row['paths']} | {row['backend']} "
                f"| {cold['median']:.1f} ({cold['p20']:.1f}–{cold['p80']:.1f}) | {warm['median']:.1f} "
                f"| {row.get('gb_per_s', '')} | {percent(row.get('share_of_copy'))} |"
            )
        elif "result" in row:
            lines.append(
                f"| {row.get('op', '')} | {row.get('table', '')} | | | {row['backend']} | {verdict(row)} | | | |"
            )
    return lines


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
