"""The figure of a split-epoch study."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .style import COLOURS, DASHES, REMARK, new_figure, plain_number, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.split import Split

_BARRIERS = {
    "midpoint": "measured, midpoint",
    "predicted": "second order",
    "sixteenth": "second order, curvature alone",
    "curvature_integral": "integral of curvature",
}
_PLACES = {"angle": "angle at the trunk (degrees)", "distance": "distance between the two"}


def draw_split(splits: Sequence[Split], folder: str | os.PathLike[str], stem: str, title: str = "") -> Path:
    """Barrier with its estimates, angle and distance, against the epoch of the split: medians as lines, groups as dots.

    Pairs that share nothing stand last, under "none". The CSV holds every pair. Returns the PNG's path.
    """
    from ..analysis.split import medians

    table = medians(splits)
    labels = ["none" if row["epoch"] is None else str(row["epoch"]) for row in table]
    with new_figure(13, 4.2) as figure:
        panels = figure.subplots(1, 3, width_ratios=[1.7, 1, 1])
        where = {row["epoch"]: i for i, row in enumerate(table)}
        for number, (name, label) in enumerate(_BARRIERS.items()):
            _series(panels[0], splits, where, [row[name] for row in table], name, number, label)
        # Barriers span decades, and estimates may be below 0.
        highest = max(max(abs(row["midpoint"]) for row in table), 1e-6)
        panels[0].set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(highest) - 2))
        panels[0].yaxis.set_major_formatter(plain_number)
        panels[0].axhline(0, color=REMARK, linewidth=0.8)
        panels[0].set_ylabel("barrier of the training loss")
        panels[0].legend(fontsize=8, frameon=False)
        for axes, (name, label) in zip(panels[1:], _PLACES.items(), strict=True):
            shared = [row for row in table if row["epoch"] is not None or name != "angle"]
            _series(axes, splits, where, [row[name] for row in shared], name, 0, None, len(shared))
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        for axes in panels:
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.4, len(labels) - 0.6)
            axes.set_xlabel("epochs trained together")
        if title:
            figure.suptitle(title, fontsize=11)
        rows = [asdict(split) for split in splits]
        names = list(rows[0])
        return save_figure(figure, folder, stem, names, [[row[name] for name in names] for row in rows])


def _series(
    axes: Axes,
    splits: Sequence[Split],
    where: dict[int | None, int],
    line: list[float],
    name: str,
    number: int,
    label: str | None,
    shown: int | None = None,
) -> None:
    axes.plot(range(len(line)), line, linestyle=DASHES[number], color=COLOURS[number], label=label)
    dots = [(where[split.epoch], getattr(split, name)) for split in splits]
    dots = [(x, y) for x, y in dots if shown is None or x < shown]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=COLOURS[number], markersize=3.5, alpha=0.6)
