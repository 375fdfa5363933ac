"""The look of every figure: colours, axes, files."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import require
from ..path.durable import write_bytes, writing

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure


#: From this ratio of highest to lowest on, the scale is logarithmic.
LOG_FROM = 10.0


def finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def scale(values: Iterable[float | None]) -> Normalize | None:
    """The colour scale over the finite ones of ``values``; None where there are none."""
    from matplotlib.colors import LogNorm, Normalize

    known = finite(values)
    if not known:
        return None
    low, high = min(known), max(known)
    if low > 0 and high > LOG_FROM * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + (abs(low) or 1.0))


def scatter(
    axes: Any,
    points: Sequence[Any],
    losses: Sequence[float | None],
    norm: Normalize | None,
    *,
    size: float = 26,
    **options: Any,
) -> Any:
    """Points on 2-D or 3-D axes (one sequence a coordinate), coloured by loss; hollow grey rings where none is finite.

    Returns what a colour bar is made for; None where no point has a colour.
    """
    known = [i for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    unknown = [i for i in range(len(losses)) if i not in set(known)]
    if unknown:
        place = [[coordinate[i] for i in unknown] for coordinate in points]
        axes.scatter(*place, s=size, facecolors="none", edgecolors=GAP, linewidths=1.2, zorder=3)
    if not known:
        return None
    place = [[coordinate[i] for i in known] for coordinate in points]
    colours = [losses[i] for i in known]
    style = {"edgecolors": LIMIT, "linewidths": 0.3, "zorder": 4, **options}
    return axes.scatter(*place, s=size, c=colours, cmap=COLOUR_MAP, norm=norm, **style)


def colour_bar(figure: Figure, points: Any, axes: Any, label: str, *, pad: float = 0.02) -> Any:
    """The bar for what :func:`scatter` returned (nothing for None); labels are plain numbers, on a log scale too."""
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


def few_labels(axis: Axis) -> None:
    """1, 2 and 5 of each decade, in plain numbers: an axis of less than a decade would have no label, or powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(plain_number)
    axis.set_minor_formatter(NullFormatter())


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


#: Okabe and Ito's colours: told apart with any colour vision. Beside line styles or markers, for print in grey.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
#: In the order in which series take them; yellow last, because it is faint on white.
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW)
#: Line styles in the same order.
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
#: Thresholds and other limits; explanations inside a figure; where values are not finite.
LIMIT, REMARK, GAP = "#444444", "#555555", "#bdbdbd"
#: For losses and other sequential values: same order in grey and with any colour vision.
COLOUR_MAP = "viridis"

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    # Ids in the SVG are random otherwise: the same numbers give the same file.
    "svg.hashsalt": "llpf_fast",
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """The house style inside, matplotlib's settings as they were afterwards."""
    with require("matplotlib", "a picture").rc_context(STYLE):
        yield


@contextlib.contextmanager
def new_figure(width: float = 10.0, height: float = 6.0) -> Iterator[Figure]:
    """An empty figure of ``width`` by ``height`` inches; draw on it inside the ``with``, where the house style holds.

    Never pyplot: it would choose a backend for the whole process and keep every figure.
    """
    with house_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def plain_number(value: float, _: Any = None) -> str:
    """Tick labels of a logarithmic axis: 0.01, not a power of ten (``axis.set_major_formatter(plain_number)``)."""
    return f"{value:g}"
