"""A figure on disk: for the screen, for a paper, and its numbers."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..path.atomic import write_bytes, writing
from .style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGES: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}


def save_figure(
    figure: Figure,
    folder: str | os.PathLike[str],
    stem: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> Path:
    """Write ``stem.png`` (150 dots an inch), ``stem.svg`` and ``stem.csv``: the numbers that ``figure`` shows.

    Every file is there whole or not at all, none is touched when drawing or a row fails, and the same figure gives the
    same bytes. Draw inside ``style.new_figure``.

    Args:
        folder: made when missing, with its parents.
        rows: of the CSV, each as long as ``columns``. None becomes an empty cell, NaN ``nan``; floats keep every digit.

    Returns:
        The PNG's path.

    Raises:
        LLPFError: the folder cannot be written. ValueError: a row of another length than ``columns``.
    """
    files = {"csv": csv_text(columns, rows).encode()}
    with house_style():
        for kind, options in _IMAGES.items():
            image = io.BytesIO()
            figure.savefig(image, format=kind, **options)
            files[kind] = image.getvalue()
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for kind, content in files.items():
        write_bytes(folder / f"{stem}.{kind}", content, durable=False)
    return folder / f"{stem}.png"


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values, a line a row under one line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values under {len(columns)} columns")
        writer.writerow(row)
    return text.getvalue()
