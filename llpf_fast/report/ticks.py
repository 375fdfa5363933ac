"""What a search did to its layers: distances, variances and loss against ticks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.ticks import COLUMNS, Ticks
from .style import BLUE, COLOURS, DASHES, GAP, LIMIT, ORANGE, REMARK, new_figure, plain_number, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: With more layers than this a legend is longer than the figure; a colour bar tells their order instead.
_NAMED_LAYERS = 7
_DISTANCE = {
    "m2o": "distance to the origin",
    "m2o-o": "distance to the origin",
    "infinity": "norm",
    "mean": "distance to the mean",
    "variance-sphere": "distance to the sphere",
    "norm-sphere": "distance to the sphere",
}


def to_where(mode: str) -> str:
    """What the recorded distances of a search in ``mode`` are."""
    return _DISTANCE.get(mode, "distance to the destination")


def draw_ticks(found: Ticks, folder: str | os.PathLike[str], stem: str = "ticks", *, title: str = "") -> Path:
    """Write ``stem`` as PNG, SVG and CSV: each layer's distance to the destination and its variance, and the loss with
    which every tick's training ended above its gradient steps. Ticks that were taken back are marked.

    Returns the PNG's path.
    """
    with new_figure(10, 9.5) as figure:
        upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
        _layers(upper, found, found.distances, to_where(found.mode))
        _layers(middle, found, found.variances, "variance")
        _handle_names(figure, upper, found)
        _loss(lower, found)
        lower.set_xlabel("tick")
        figure.align_ylabels()
        head = f"{title}: " if title else ""
        upper.set_title(
            f"{head}{len(found.layers)} tensors over {found.ticks[-1]:,} ticks", loc="left", fontweight="bold"
        )
        return save_figure(figure, folder, stem, COLUMNS, found.rows())


def _styles(found: Ticks) -> list[tuple[Any, Any]]:
    """Colour and dash of each layer: a module's weight and bias share the colour, the bias is dashed."""
    import matplotlib

    modules = list(dict.fromkeys(_module(name) for name in found.layers))
    if len(modules) <= _NAMED_LAYERS:
        colours: list[Any] = list(COLOURS[: len(modules)])
    else:
        colours = list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(modules))))
    return [
        (colours[modules.index(_module(name))], DASHES[1] if "bias" in name else DASHES[0]) for name in found.layers
    ]


def _layers(axes: Axes, found: Ticks, values: np.ndarray, label: str) -> None:
    shown = np.where(np.isfinite(values) & (values > 0), values, math.nan)
    for s, (colour, dash) in enumerate(_styles(found)):
        axes.plot(found.ticks, shown[:, s], color=colour, linestyle=dash, linewidth=1.4)
    known = shown[np.isfinite(shown)]
    if known.size and known.max() > 10 * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
    axes.set_ylabel(label)
    _mark_taken_back(axes, found)


def _handle_names(figure: Any, axes: Axes, found: Ticks) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.lines import Line2D

    modules = list(dict.fromkeys(_module(name) for name in found.layers))
    styles = dict(zip(found.layers, _styles(found), strict=True))
    of = {_module(name): colour for name, (colour, _) in styles.items()}
    if len(modules) <= _NAMED_LAYERS:
        handles = [Line2D([], [], color=of[name], label=name) for name in modules]
        if any("bias" in name for name in found.layers):
            handles.append(Line2D([], [], color=LIMIT, linestyle=DASHES[1], label="dashed: biases"))
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=10)
        return
    colours = ListedColormap([of[name] for name in modules])
    bar = figure.colorbar(ScalarMappable(Normalize(0, len(modules)), colours), ax=figure.axes, pad=0.02, shrink=0.6)
    step = max(1, len(modules) // 12)
    places = range(0, len(modules), step)
    bar.set_ticks([i + 0.5 for i in places], labels=[modules[i] for i in places], fontsize=8)
    bar.set_label("layer; dashed: biases", fontsize=10)


def _loss(axes: Axes, found: Ticks) -> None:
    axes.plot(
        found.ticks, found.loss, color=BLUE, linewidth=1.5, marker="o" if len(found.ticks) <= 60 else "", markersize=3
    )
    finite = [value for value in found.loss if math.isfinite(value) and value > 0]
    if finite and max(finite) > 10 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
    axes.set_ylabel("loss the tick's\ntraining ended with", color=BLUE)
    steps = axes.twinx()
    steps.bar(found.ticks, found.rounds, color=ORANGE, alpha=0.35, width=1.0 if len(found.ticks) > 60 else 0.6)
    steps.set_ylabel("gradient steps", color=REMARK)
    steps.grid(False)
    axes.set_zorder(steps.get_zorder() + 1)
    axes.patch.set_visible(False)
    _mark_taken_back(axes, found)
    for tick, value in zip(found.ticks, found.loss, strict=True):
        if not math.isfinite(value):
            axes.axvline(tick, color=LIMIT, linewidth=0.8, linestyle=":")
    if any(found.taken_back):
        axes.plot([], [], color=GAP, linewidth=4, label="tick taken back")
        axes.legend(frameon=False, fontsize=9)


def _mark_taken_back(axes: Axes, found: Ticks) -> None:
    for tick, back in zip(found.ticks, found.taken_back, strict=True):
        if back:
            axes.axvline(tick, color=GAP, linewidth=2, alpha=0.5, zorder=0)


def _module(name: str) -> str:
    return name.partition("[")[0].rpartition(".")[0] or name
