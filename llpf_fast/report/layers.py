"""The figure of layer-wise linear connectivity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import COLOUR_MAP, COLOURS, LIMIT, REMARK, as_table, new_figure, plain_number, save_figure, write_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.layers import LayerConnectivity

#: Up to so many layers, cells hold their numbers and points their names.
_MOST_LABELLED = 14
_ORDERS = {"alone": "alone", "shallow": "from the input", "deep": "from the output", "random": "random order"}


def draw_layers(result: LayerConnectivity, folder: str | os.PathLike[str], stem: str = "layers") -> Path:
    """Draw a heat map of the barriers over layers; returns the PNG's path.

    A row of the heat map is a base network and a kind of group; a column is the layer added last. Where derivatives
    were taken, predicted barriers are drawn against measured ones. The CSV holds every group with both kinds of
    BatchNorm statistics.
    """
    layers = [layer.layer for layer in result.layers]
    predicted = result.whole is not None
    kinds = result.statistics
    row_height = 1.2 + 0.42 * len(_rows(result))
    width = min(max(7.5, 1.0 * len(layers) + 4.5), 16)
    height = len(kinds) * row_height + (4.2 if predicted else 0.0)
    with new_figure(width, height) as figure:
        ratios = [row_height] * len(kinds) + [4.2] * predicted
        parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        for part, kind in zip(parts, kinds, strict=False):
            _draw_heat_map(part, result, layers, kind, len(kinds) > 1)
        if predicted:
            _draw_predictions(parts[-1], result, layers)
        return save_figure(figure, folder, stem, *as_table(result.rows()))


def _rows(result: LayerConnectivity) -> list[tuple[Any, int]]:
    """Kind of group and base network of each row."""
    orders = dict.fromkeys(group.order for group in result.groups)
    return [(order, base) for order in orders for base in (0, 1)]


def _draw_heat_map(figure: Any, result: LayerConnectivity, layers: list[str], kind: Any, several: bool) -> None:
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
    # Linear near 0, logarithmic above: a single layer's barrier is often hundreds of times below the whole network's.
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
    if len(layers) <= _MOST_LABELLED:
        write_cells(axes, values, 7.5)
    bar = figure.colorbar(image, ax=axes, format=plain_number)
    bar.ax.tick_params(labelsize=8)


def _draw_predictions(figure: Any, result: LayerConnectivity, layers: list[str]) -> None:
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
            if len(layers) <= _MOST_LABELLED:
                for group, px, py in zip(groups, x, y, strict=True):
                    axes.annotate(group.layer, (px, py), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axes.axline((0, 0), slope=1, color=LIMIT, linewidth=0.8, linestyle=":", label="predicted = measured")
        rho = ranks[order].rho
        correlation = "not defined" if rho is None else f"{rho:.2f}"
        axes.set_title(
            f"{_ORDERS[order]}: rank correlation {correlation} of {ranks[order].count}", fontsize=10, color=REMARK
        )
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("barrier predicted to second order")
        axes.set_ylabel("barrier measured")
        axes.legend(fontsize=8)
