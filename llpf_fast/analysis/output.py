"""Results on disk: one JSON file with numbers, settings, versions and machine, and one CSV a table."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..ops.info import describe
from ..path.durable import write_bytes, write_json, writing
from ..path.plain_values import finite_or_none, to_plain

#: A table: rows of plain values by column name; the columns are the first row's, and those that later rows add.
Table = Sequence[Mapping[str, Any]]


def write_result(
    folder: str | os.PathLike[str],
    stem: str,
    *,
    numbers: Mapping[str, Any],
    tables: Mapping[str, Table] | None = None,
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Write ``folder/stem.json``, and ``folder/stem-TABLE.csv`` for each of ``tables``; returns the JSON file's path.

    The JSON holds ``numbers``, ``about`` (what was asked for, on what), ``environment`` (llpf_fast, torch, Python,
    processor, threads) and the names of the CSV files. NaN and infinity become null there and ``nan``, ``inf`` in a
    CSV, where None is an empty field. The same call writes the same bytes; every file is replaced atomically.

    Raises:
        LLPFError: the folder cannot be made or written.
        TypeError: a value that is not valid in JSON.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in (tables or {}).items():
        files[name] = f"{stem}-{name}.csv"
        write_bytes(folder / files[name], _csv(rows).encode(), durable=False)
    content = {
        "about": to_plain(about or {}),
        "numbers": to_plain(numbers),
        "tables": files,
        "environment": {"llpf_fast": __version__, **to_plain(describe(torch.device(device)))},
    }
    path = folder / f"{stem}.json"
    write_json(path, finite_or_none(content), durable=False)
    return path


def _csv(rows: Table) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_field(row.get(name)) for name in columns])
    return text.getvalue()


def _field(value: Any) -> Any:
    value = to_plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return value
