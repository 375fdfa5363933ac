"""Loss as colour: one scale for all points of a figure, and a clear mark for what has no finite loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .style import COLOUR_MAP, GAP, LIMIT, plain_number

if TYPE_CHECKING:
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
