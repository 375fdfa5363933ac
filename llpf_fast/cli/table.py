"""A table on stdout, as all commands print theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence


def print_table(columns: Mapping[str, bool], rows: Iterable[Sequence[str]], width: int) -> None:
    """``columns``: name to whether it holds numbers; ``rows``: their cells; ``width`` is that of a file or a pipe."""
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
