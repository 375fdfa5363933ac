"""Tables on stdout, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO


def print_table(columns: Mapping[str, bool], rows: Iterable[Sequence[str]], width: int) -> None:
    """Print a table on stdout.

    Args:
        columns: name -> whether the column holds numbers, which are aligned to the right.
        rows: cells of each row.
        width: in characters, where stdout is no terminal.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, is_number in columns.items():
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else width, markup=False, highlight=False)
    console.print(table)


#: Between two lines of progress where stderr is no terminal: some 700 lines an hour.
_LINE_SECONDS = 5.0


class Progress:
    """Shows on stderr how far some work is: a bar on a terminal, else a line every few seconds.

    Work of several parts calls ``begin`` before each part, or counts from the beginning again. The rate and the time
    left are those of the part.

    Args:
        unit: what ``update`` counts, in the singular.
        quiet: show nothing but what ``print_line`` prints.
        upper_bound: the work may end before ``total``; the time left is shown as "at most".
    """

    def __init__(
        self,
        unit: str,
        *,
        quiet: bool = False,
        upper_bound: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit, self._quiet, self._upper_bound, self._clock = unit, quiet, upper_bound, clock
        self._stream = stream or sys.stderr
        self._live: Any = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None
        self._last_done = 0
        self._printed_at = float("-inf")
        self._last_line = self._printed_line = self._part = ""

    def __enter__(self) -> Progress:
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
                console=Console(file=self._stream),
                refresh_per_second=5,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._print_last()

    def begin(self, part: str) -> None:
        """Begin a new part of the work; its time is counted from its first ``update``."""
        self._print_last()
        self._part, self._first, self._printed_at = part, None, float("-inf")

    def print_line(self, line: str) -> None:
        """Print a line, even when quiet: an error in one part of the work."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        self._print_last()
        print(line, file=self._stream, flush=True)

    def _print_last(self) -> None:
        """Print the last line of progress, if it came too soon after another to be printed then."""
        if self._live is None and not self._quiet and self._last_line != self._printed_line:
            self._printed_line = self._last_line
            print(self._last_line, file=self._stream, flush=True)

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that ``done`` of ``total`` units are finished; ``text`` follows the numbers."""
        if self._quiet:
            return
        now = self._clock()
        if self._first is None or done < self._last_done:
            self._first = (now, done)
        self._last_done = done
        self._last_line = self._line(now, done, total, text)
        if self._live is not None:
            if self._task is None:
                self._task = self._live.add_task(self._last_line, total=total)
            self._live.update(self._task, completed=done, total=total, description=self._last_line)
        elif now - self._printed_at >= _LINE_SECONDS:
            self._printed_at, self._printed_line = now, self._last_line
            print(self._last_line, file=self._stream, flush=True)

    def _line(self, now: float, done: int, total: int, text: str) -> str:
        parts = [f"{self._part}: " * bool(self._part) + f"{self._unit} {done:,}/{total:,}"]
        if text:
            parts.append(text)
        assert self._first is not None
        seconds, units = now - self._first[0], done - self._first[1]
        if seconds > 0 and units > 0:
            rate = units / seconds
            parts.append(f"{rate:.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}")
            if done < total:
                bound = "at most " if self._upper_bound else ""
                parts.append(f"{bound}{duration((total - done) / rate)} left")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """``0:07``, ``12:40``, ``3:05:00``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
