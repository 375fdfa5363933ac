"""The figure of a search's ticks: each layer's distance and variance, and the loss."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.ticks import COLUMNS, Ticks
from ..modes import MODES
from .style import BLUE, COLOURS, DASHES, GAP, LIMIT, ORANGE, REMARK, log_if_wide, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: With more layers a legend would be longer than the figure; a colour bar tells their order instead.
_MOST_IN_LEGEND = 7


def distance_label(mode: str) -> str:
    """What a search in ``mode`` records as each layer's distance."""
    return MODES[mode].distance if mode in MODES else "distance to the destination"


def draw_ticks(ticks: Ticks, folder: str | os.PathLike[str], stem: str = "ticks", *, title: str = "") -> Path:
    """Draw each layer's distance and variance, and each tick's loss and gradient steps; returns the PNG's path.

    The loss is the one with which the tick's training ended. Ticks that were rolled back are marked. Writes ``stem`` as
    PNG, SVG and CSV.
    """
    with new_figure(10, 9.5) as figure:
        upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
        _draw_layers(upper, ticks, ticks.distances, distance_label(ticks.mode))
        _draw_layers(middle, ticks, ticks.variances, "variance")
        _draw_legend(figure, upper, ticks)
        _draw_loss(lower, ticks)
        lower.set_xlabel("tick")
        figure.align_ylabels()
        head = f"{title}: " if title else ""
        upper.set_title(
            f"{head}{len(ticks.layers)} tensors over {ticks.ticks[-1]:,} ticks", loc="left", fontweight="bold"
        )
        return save_figure(figure, folder, stem, COLUMNS, ticks.rows())


def _styles(ticks: Ticks) -> list[tuple[Any, Any]]:
    """Colour and dash of each layer. A module's weight and bias share the colour; the bias is dashed."""
    import matplotlib

    modules = list(dict.fromkeys(module_name(name) for name in ticks.layers))
    if len(modules) <= _MOST_IN_LEGEND:
        colours: list[Any] = list(COLOURS[: len(modules)])
    else:
        colours = list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(modules))))
    return [
        (colours[modules.index(module_name(name))], DASHES[1] if "bias" in name else DASHES[0]) for name in ticks.layers
    ]


def _draw_layers(axes: Axes, ticks: Ticks, values: np.ndarray, label: str) -> None:
    """Draw ``values [ticks, layers]``; those that are not positive or not finite leave gaps."""
    shown = np.where(np.isfinite(values) & (values > 0), values, math.nan)
    for s, (colour, dash) in enumerate(_styles(ticks)):
        axes.plot(ticks.ticks, shown[:, s], color=colour, linestyle=dash, linewidth=1.4)
    log_if_wide(axes, shown.ravel().tolist())
    axes.set_ylabel(label)
    _mark_rolled_back(axes, ticks)


def _draw_legend(figure: Any, axes: Axes, ticks: Ticks) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.lines import Line2D

    modules = list(dict.fromkeys(module_name(name) for name in ticks.layers))
    styles = dict(zip(ticks.layers, _styles(ticks), strict=True))
    colour_of = {module_name(name): colour for name, (colour, _) in styles.items()}
    if len(modules) <= _MOST_IN_LEGEND:
        handles = [Line2D([], [], color=colour_of[name], label=name) for name in modules]
        if any("bias" in name for name in ticks.layers):
            handles.append(Line2D([], [], color=LIMIT, linestyle=DASHES[1], label="dashed: biases"))
        figure.legend(handles=handles, loc="outside right upper", fontsize=10)
        return
    colours = ListedColormap([colour_of[name] for name in modules])
    bar = figure.colorbar(ScalarMappable(Normalize(0, len(modules)), colours), ax=figure.axes, pad=0.02, shrink=0.6)
    step = max(1, len(modules) // 12)
    labelled = range(0, len(modules), step)
    bar.set_ticks([i + 0.5 for i in labelled], labels=[modules[i] for i in labelled], fontsize=8)
    bar.set_label("layer; dashed: biases", fontsize=10)


def _draw_loss(axes: Axes, ticks: Ticks) -> None:
    axes.plot(
        ticks.ticks, ticks.loss, color=BLUE, linewidth=1.5, marker="o" if len(ticks.ticks) <= 60 else "", markersize=3
    )
    log_if_wide(axes, ticks.loss)
    axes.set_ylabel("loss the tick's\ntraining ended with", color=BLUE)
    steps = axes.twinx()
    steps.bar(ticks.ticks, ticks.rounds, color=ORANGE, alpha=0.35, width=1.0 if len(ticks.ticks) > 60 else 0.6)
    steps.set_ylabel("gradient steps", color=REMARK)
    steps.grid(False)
    axes.set_zorder(steps.get_zorder() + 1)
    axes.patch.set_visible(False)
    _mark_rolled_back(axes, ticks)
    for tick, value in zip(ticks.ticks, ticks.loss, strict=True):
        if not math.isfinite(value):
            axes.axvline(tick, color=LIMIT, linewidth=0.8, linestyle=":")
    if any(ticks.taken_back):
        axes.plot([], [], color=GAP, linewidth=4, label="tick rolled back")
        axes.legend()


def _mark_rolled_back(axes: Axes, ticks: Ticks) -> None:
    for tick, back in zip(ticks.ticks, ticks.taken_back, strict=True):
        if back:
            axes.axvline(tick, color=GAP, linewidth=2, alpha=0.5, zorder=0)


def module_name(name: str) -> str:
    """The module that the parameter ``name`` belongs to: ``conv1`` for ``conv1.weight`` and ``conv1.bias[2]``."""
    return name.partition("[")[0].rpartition(".")[0] or name
