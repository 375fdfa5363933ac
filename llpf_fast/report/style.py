"""The look of every figure: colours, axes, files."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import require
from ..path.durable import write_bytes, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which people with any colour vision tell apart. Line styles and markers differ too, for
#: print in grey.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
#: In the order in which series take them; yellow last, because it is faint on white.
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW)
#: Line styles in the same order.
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
#: Thresholds and other limits; explanations inside a figure; where values are not finite.
LIMIT, REMARK, GAP = "#444444", "#555555", "#bdbdbd"
#: Of losses and other sequential values. Its order is the same in grey.
COLOUR_MAP = "viridis"
#: An axis or a colour scale is logarithmic where the highest value exceeds the lowest by more than this factor.
LOG_FROM = 10.0

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    # Ids in the SVG are random otherwise: the same numbers give the same file.
    "svg.hashsalt": "llpf_fast",
}
_IMAGES: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}


@contextlib.contextmanager
def style_context() -> Iterator[None]:
    """Apply ``STYLE`` inside; matplotlib's settings are restored afterwards."""
    with require("matplotlib", "a picture").rc_context(STYLE):
        yield


@contextlib.contextmanager
def new_figure(width: float = 10.0, height: float = 6.0) -> Iterator[Figure]:
    """An empty figure of ``width`` by ``height`` inches, to draw on inside the ``with``, where ``STYLE`` holds.

    Made without pyplot, which would choose a backend for the whole process and never free a figure.

    Raises:
        MissingPackageError: matplotlib is missing.
    """
    with style_context():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(
    figure: Figure,
    folder: str | os.PathLike[str],
    stem: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> Path:
    """Write ``stem.png`` (150 dots an inch), ``stem.svg`` and ``stem.csv``: the numbers that ``figure`` shows.

    Each file is written whole or not at all. None is touched when drawing or a row fails. The same figure gives the
    same bytes. Call it inside :func:`new_figure`.

    Args:
        folder: made when missing, with its parents.
        rows: of the CSV, each as long as ``columns``. None becomes an empty cell, NaN ``nan``; floats keep every digit.

    Returns:
        The PNG's path.

    Raises:
        LLPFError: the folder cannot be written. ValueError: a row of another length than ``columns``.
    """
    files = {"csv": csv_text(columns, rows).encode()}
    with style_context():
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


def as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for :func:`save_figure`: the keys of the first mapping, and each mapping's values of them."""
    columns = list(rows[0])
    return columns, [[row.get(name) for name in columns] for row in rows]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """``rows`` as comma-separated values below a line of ``columns``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values under {len(columns)} columns")
        writer.writerow(row)
    return text.getvalue()


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def with_gaps(values: Iterable[float | None]) -> list[float]:
    """``values`` with NaN, a gap in a line, where one is missing or not finite."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices below ``count``, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def plain_number(value: float, _: Any = None) -> str:
    """A tick label such as 0.01 instead of a power of ten (``axis.set_major_formatter(plain_number)``)."""
    return f"{value:g}"


def log_if_wide(axes: Axes, values: Iterable[float | None]) -> None:
    """Make the y axis logarithmic where the positive ones of ``values`` span more than ``LOG_FROM``."""
    known = [value for value in finite(values) if value > 0]
    if known and max(known) > LOG_FROM * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)


def label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade in plain numbers. matplotlib labels less than a decade badly or not at all."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(plain_number)
    axis.set_minor_formatter(NullFormatter())


def remark_above(axes: Axes, text: str) -> None:
    """A line of explanation between the axes and a title that ends with a line break."""
    axes.annotate(text, (0, 1), (0, 6), "axes fraction", textcoords="offset points", fontsize=10, color=REMARK)


def colour_scale(values: Iterable[float | None]) -> Normalize | None:
    """The colour scale over the finite ones of ``values``; None where there are none."""
    from matplotlib.colors import LogNorm, Normalize

    known = finite(values)
    if not known:
        return None
    low, high = min(known), max(known)
    if low > 0 and high > LOG_FROM * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + (abs(low) or 1.0))


def scatter_losses(
    axes: Any,
    points: Sequence[Any],
    losses: Sequence[float | None],
    norm: Normalize | None,
    *,
    size: float = 26,
    **options: Any,
) -> Any:
    """Draw points on 2-D or 3-D axes, coloured by loss; hollow grey rings where the loss is not finite.

    Args:
        points: one sequence a coordinate.
        options: of ``axes.scatter``.

    Returns:
        What :func:`colour_bar` takes; None where no point has a colour.
    """
    known = [i for i, loss in enumerate(losses) if is_finite(loss)]
    unknown = [i for i, loss in enumerate(losses) if not is_finite(loss)]
    if unknown:
        rings = [[coordinate[i] for i in unknown] for coordinate in points]
        axes.scatter(*rings, s=size, facecolors="none", edgecolors=GAP, linewidths=1.2, zorder=3)
    if not known:
        return None
    dots = [[coordinate[i] for i in known] for coordinate in points]
    colours = [losses[i] for i in known]
    options = {"edgecolors": LIMIT, "linewidths": 0.3, "zorder": 4, **options}
    return axes.scatter(*dots, s=size, c=colours, cmap=COLOUR_MAP, norm=norm, **options)


def colour_bar(figure: Figure, points: Any, axes: Any, label: str, *, pad: float = 0.02) -> Any:
    """The bar for what :func:`scatter_losses` returned (None for None), labelled in plain numbers."""
    if points is None:
        return None
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    bar = figure.colorbar(points, ax=axes, label=label, shrink=0.8, pad=pad)
    if isinstance(points.norm, LogNorm):
        bar.set_ticks(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_minor_formatter(lambda *_: "")
    bar.ax.yaxis.set_major_formatter(plain_number)
    return bar


def write_cells(axes: Axes, values: Any, size: float = 8) -> None:
    """Write ``values [rows, columns]`` into the cells of the image on ``axes``; NaN cells stay empty."""
    import numpy as np

    image = axes.images[-1]
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            # White on the dark half of the colour map.
            colour = "white" if np.asarray(image.norm(value)).item() < 0.6 else "black"
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=size, color=colour)
