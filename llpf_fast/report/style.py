"""The look that all figures share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@contextlib.contextmanager
def new_figure(width: float = 10.0, height: float = 6.0) -> Iterator[Figure]:
    """An empty figure of ``width`` by ``height`` inches; draw on it inside the ``with``, where the house style holds.

    Never pyplot: it would choose a backend for the whole process and keep every figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def plain_number(value: float, _: Any = None) -> str:
    """Tick labels of a logarithmic axis: 0.01, not a power of ten (``axis.set_major_formatter(plain_number)``)."""
    return f"{value:g}"
