"""Labels of logarithmic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .style import plain_number

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def few_labels(axis: Axis) -> None:
    """1, 2 and 5 of each decade, in plain numbers: an axis of less than a decade would have no label, or powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(plain_number)
    axis.set_minor_formatter(NullFormatter())
