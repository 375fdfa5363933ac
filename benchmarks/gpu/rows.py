"""Results as JSON lines, each on the disk before the next is begun: a stage that is killed keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Emit = Callable[[Row], None]


def writer(path: Path, stage: str, shown: Callable[[Row], str]) -> Emit:
    """A function that appends one row to ``path`` and prints it as ``shown``."""

    def emit(row: Row) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage} | row) + "\n")
        print(shown(row), flush=True)

    return emit


def read(path: Path) -> list[Row]:
    """Every whole row; the last may be torn where its writer was killed."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def why(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
