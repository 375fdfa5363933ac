"""Figures of layer-wise linear connectivity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .linear import write_cells
from .style import COLOUR_MAP, COLOURS, LIMIT, REMARK, new_figure, plain_number, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.layers import LayerConnectivity

#: Numbers are written into the cells up to so many layers.
_MOST_WRITTEN = 14
_ORDERS = {"alone": "alone", "shallow": "from the input", "deep": "from the output", "random": "random order"}


def draw_layers(result: LayerConnectivity, folder: str | os.PathLike[str], stem: str = "layers") -> Path:
    """Heat map of the barriers over layers, and, where derivatives were taken, predicted against measured barriers.

    Rows of the heat map are a base network and a kind of group; a column is the layer added last. The CSV holds every
    group with both kinds of BatchNorm statistics. Returns the PNG's path.
    """
    layers = [place.layer for place in result.layers]
    predicted = result.whole is not None
    kinds = result.statistics
    width = min(max(7.5, 1.0 * len(layers) + 4.5), 16)
    height = len(kinds) * (1.2 + 0.42 * len(_rows(result))) + (4.2 if predicted else 0.0)
    with new_figure(width, height) as figure:
        ratios = [1.2 + 0.42 * len(_rows(result))] * len(kinds) + [4.2] * predicted
        parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        for part, kind in zip(parts, kinds, strict=False):
            _heat_map(part, result, layers, kind, len(kinds) > 1)
        if predicted:
            _scatter(parts[-1], result, layers)
        rows = result.rows()
        names = list(rows[0])
        return save_figure(figure, folder, stem, names, [[row.get(name) for name in names] for row in rows])


def _rows(result: LayerConnectivity) -> list[tuple[Any, int]]:
    orders = dict.fromkeys(group.order for group in result.groups)
    return [(order, base) for order in orders for base in (0, 1)]


def _heat_map(figure: Any, result: LayerConnectivity, layers: list[str], kind: Any, several: bool) -> None:
    from matplotlib.colors import SymLogNorm

    rows = _rows(result)
    values = np.full((len(rows), len(layers)), np.nan)
    for i, (order, base) in enumerate(rows):
        for group in result.select(order, base, kind):
            values[i, layers.index(group.layer)] = group.barriers["train_loss"]
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 1.0
    lowest = float(finite.min()) if finite.size else 0.0
    axes: Axes = figure.subplots()
    # Single layers are often hundreds of times below the whole: linear near 0, logarithmic above.
    scale = max(abs(highest), abs(lowest), 1e-12)
    norm = SymLogNorm(scale / 100, vmin=min(lowest, 0.0), vmax=max(highest, scale / 50))
    image = axes.imshow(values, cmap=COLOUR_MAP, norm=norm, aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 6 else 0, fontsize=8)
    axes.set_yticks(
        range(len(rows)), [f"{_ORDERS[order]}, base {result.names[base]}" for order, base in rows], fontsize=8
    )
    axes.set_xlabel("layer (in cumulative rows: the one added last)", fontsize=9)
    remark = f", BatchNorm statistics {kind}" if several else ""
    axes.set_title(f"barrier of the training loss with layers halfway{remark}", fontsize=10, color=REMARK)
    if len(layers) <= _MOST_WRITTEN:
        write_cells(axes, values, 7.5)
    bar = figure.colorbar(image, ax=axes, format=plain_number)
    bar.ax.tick_params(labelsize=8)


def _scatter(figure: Any, result: LayerConnectivity, layers: list[str]) -> None:
    orders = list(dict.fromkeys(group.order for group in result.groups))
    shown = [order for order in ("alone", "shallow", "deep", "random") if order in orders]
    panels = [shown[0], *list(shown[1:2])]
    ranks = result.ranks()
    for axes, order in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for base, marker in ((0, "o"), (1, "s")):
            groups = result.select(order, base)
            x = [group.predicted for group in groups]
            y = [group.barriers["train_loss"] for group in groups]
            axes.plot(x, y, marker, color=COLOURS[base], label=f"base {result.names[base]}")
            if len(layers) <= _MOST_WRITTEN:
                for group, px, py in zip(groups, x, y, strict=True):
                    axes.annotate(group.layer, (px, py), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axes.axline((0, 0), slope=1, color=LIMIT, linewidth=0.8, linestyle=":", label="predicted = measured")
        rho = ranks[order].rho
        said = "not defined" if rho is None else f"{rho:.2f}"
        axes.set_title(f"{_ORDERS[order]}: rank correlation {said} of {ranks[order].count}", fontsize=10, color=REMARK)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("barrier predicted to second order")
        axes.set_ylabel("barrier measured")
        axes.legend(fontsize=8, frameon=False)
