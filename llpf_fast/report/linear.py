"""The figure of linear mode connectivity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import COLOUR_MAP, COLOURS, GAP, REMARK, as_table, new_figure, save_figure, write_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.linear import Line, LinearConnectivity

#: With more lines than colours all are drawn alike; the matrix tells them apart.
_MOST_NAMED = len(COLOURS)
_LABELS = {"loss": "loss", "error": "error (share wrong)"}


def draw_linear(result: LinearConnectivity, folder: str | os.PathLike[str], stem: str = "linear") -> Path:
    """Draw loss, and error for classification, along every line; returns the PNG's path.

    With three networks or more a further panel holds the matrix of barriers. Training values are solid, test values
    dashed. Each kind of BatchNorm statistics has a row of panels. A value that is not finite leaves a gap, with a mark
    at the bottom. The CSV holds every point.
    """
    kinds = list(dict.fromkeys(line.statistics for line in result.lines))
    measures = [m for m in _LABELS if any(name.endswith(m) for line in result.lines for name in line.values)]
    matrix = len(result.names) > 2
    columns = len(measures) + matrix
    with new_figure(5.2 * columns, 3.9 * len(kinds) + 0.4) as figure:
        panels = figure.subplots(len(kinds), columns, squeeze=False)
        for row, kind in zip(panels, kinds, strict=True):
            lines = [line for line in result.lines if line.statistics == kind]
            for axes, measure in zip(row, measures, strict=False):
                _draw_lines(axes, result, lines, measure)
                axes.set_title(_title(kind, len(kinds) > 1), fontsize=10, color=REMARK)
            if matrix:
                _draw_matrix(figure, row[-1], result, lines)
        _legend(panels[0, 0], result)
        return save_figure(figure, folder, stem, *as_table(result.rows()))


def _title(kind: str, several: bool) -> str:
    if not several:
        return ""
    return "BatchNorm statistics interpolated" if kind == "stored" else "BatchNorm statistics re-estimated"


def _draw_lines(axes: Axes, result: LinearConnectivity, lines: list[Line], measure: str) -> None:
    for number, line in enumerate(lines):
        named = len(lines) <= _MOST_NAMED
        style: dict[str, Any] = {"color": COLOURS[number] if named else COLOURS[0], "alpha": 1.0 if named else 0.35}
        for split, dash in (("train", "-"), ("test", "--")):
            values = line.values.get(f"{split}_{measure}")
            if values is None:
                continue
            label = f"{result.names[line.first]} – {result.names[line.second]}" if named and split == "train" else None
            axes.plot(line.fractions, values, dash, linewidth=1.8 if split == "train" else 1.2, label=label, **style)
            gaps = [a for a, value in zip(line.fractions, values, strict=True) if not np.isfinite(value)]
            axes.plot(gaps, [0.02] * len(gaps), "x", color=GAP, transform=axes.get_xaxis_transform())
    axes.set_xlabel("fraction of the way")
    axes.set_ylabel(_LABELS[measure])
    axes.set_xlim(0, 1)
    if axes.dataLim.y0 >= 0:  # a user's loss may be negative
        axes.set_ylim(bottom=0)


def _draw_matrix(figure: Any, axes: Axes, result: LinearConnectivity, lines: list[Line]) -> None:
    count = len(result.names)
    values = np.full((count, count), np.nan)
    for line in lines:
        barrier = line.barriers["train_loss"].entezari
        values[line.first, line.second] = values[line.second, line.first] = barrier
    image = axes.imshow(values, cmap=COLOUR_MAP, vmin=0)
    axes.grid(visible=False)
    axes.set_xticks(range(count), result.names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(count), result.names, fontsize=8)
    axes.set_title("barrier of the training loss (Entezari)", fontsize=10, color=REMARK)
    if count <= 8:
        write_cells(axes, values)
    figure.colorbar(image, ax=axes, shrink=0.85)


def _legend(axes: Axes, result: LinearConnectivity) -> None:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    handles += [Line2D([], [], color=REMARK, linestyle=dash) for dash in ("-", "--")]
    labels += ["training set", "test set"]
    if not any(name.startswith("test") for name in result.lines[0].values):
        handles, labels = handles[:-2], labels[:-2]
    if labels:
        axes.legend(handles, labels, fontsize=8)
