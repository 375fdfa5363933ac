"""One run of the suite, as ``llpf bench`` starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import chosen, registry
from .harness import stream
from .harness.case import WrongResultError
from .harness.environment import load, record
from .harness.report import Result, goal_table, line, write
from .harness.run import rows

SECONDS, QUICK_SECONDS = 5.0, 0.4


@dataclass(frozen=True)
class Options:
    """What ``llpf bench`` was asked for."""

    device: torch.device
    quick: bool = False
    large: bool = False
    only: str = ""
    threads: tuple[int, ...] = (1, 2)
    out: Path | None = None
    seconds: float | None = None

    @property
    def tier(self) -> str:
        return "quick" if self.quick else "large" if self.large else "usual"


def names() -> list[str]:
    """Of every case, with the tier it belongs to."""
    return [f"{case.name}  [{case.tier}; threads {', '.join(map(str, case.threads))}]" for case in registry()]


def run(options: Options, say: Callable[[str], None] = print) -> Result:
    """Time the chosen cases, say each row, write the files.

    Raises:
        WrongResultError: a result is wrong; nothing of that case was timed. All others were, and the files are written.
    """
    result: Result = {"environment": record(options.device), "notes": [], "rows": []}
    wrong: list[WrongResultError] = []

    def note(text: str) -> None:
        result["notes"].append(text)
        say(f"note: {text}")

    if options.device.type == "cpu" and not stream.compiled():
        note("no C++ compiler: read and triad bandwidth are those of torch's ops alone, so shares may be too high")
    for row in rows(
        chosen(options.tier, options.only),
        options.device,
        seconds=options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
        threads=(1,) if options.quick else options.threads,
        quick=options.quick,
        notify=note,
        wrong=wrong,
    ):
        result["rows"].append(row)
        say(line(row))
    result["environment"]["load_after"] = load()
    for text in goal_table(result["rows"]):
        say(text)
    if options.out is not None:
        for path in write(result, options.out):
            say(f"written: {path}")
    if wrong:
        raise wrong[0]
    return result
