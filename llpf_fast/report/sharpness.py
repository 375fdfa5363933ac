"""The figure of sharpness along paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .style import COLOURS, DASHES, finite, is_finite, label_decades, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

#: Key of a row, label, standard error.
_PANELS = (
    ("top_eigenvalue", "top Hessian eigenvalue", None),
    ("trace", "Hessian trace", "trace_standard_error"),
    ("sam_one_step", "SAM sharpness, one step", None),
    ("test_accuracy", "test accuracy (%)", "test_accuracy_standard_error"),
)


def draw_sharpness(
    runs: Mapping[str, Rows],
    folder: str | os.PathLike[str],
    stem: str = "sharpness",
    *,
    along: Literal["arc", "norm_share"] = "arc",
) -> Path:
    """Draw eigenvalue, trace with its standard error, one-step sharpness and test accuracy; returns the PNG's path.

    The CSV holds every row.

    Args:
        runs: rows of each run by its name.
        along: what the x axis is: the share of the path's length, or the norm as a share of the start's, falling.
    """
    panels = [
        panel for panel in _PANELS if any(row.get(panel[0]) is not None for rows in runs.values() for row in rows)
    ]
    with new_figure(3.7 * len(panels), 3.8) as figure:
        for axes, (key, label, error) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for number, (name, rows) in enumerate(runs.items()):
                _draw(axes, name, rows, key, error, along, number)
            axes.set_ylabel(label)
            axes.set_xlabel("share of the path's length" if along == "arc" else "norm, share of the start's")
            if along == "norm_share":
                axes.invert_xaxis()
            if key != "test_accuracy" and _all_positive(runs, key):
                axes.set_yscale("log")
                label_decades(axes.yaxis)
        if len(runs) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        columns = ["run", *next(iter(runs.values()))[0]]
        table = [[name, *(row.get(column) for column in columns[1:])] for name, rows in runs.items() for row in rows]
        return save_figure(figure, folder, stem, columns, table)


def _draw(axes: Axes, name: str, rows: Rows, key: str, error: str | None, along: str, number: int) -> None:
    scale = 100 if key == "test_accuracy" else 1
    rows = [row for row in rows if is_finite(row.get(key))]
    axes.errorbar(
        [row[along] for row in rows],
        [scale * row[key] for row in rows],
        yerr=None if error is None else [scale * row[error] for row in rows],
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number % len(DASHES)],
        marker="o",
        markersize=4,
        linewidth=1.6,
        elinewidth=1,
        capsize=2,
        label=name,
    )


def _all_positive(runs: Mapping[str, Rows], key: str) -> bool:
    """Whether a logarithmic axis shows every value."""
    return all(value > 0 for value in finite(row.get(key) for rows in runs.values() for row in rows))
