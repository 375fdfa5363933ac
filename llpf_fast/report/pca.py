"""The figures of paths along their principal components, of the whole network and layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.pca import Components, Projection
from .style import (
    COLOURS,
    DASHES,
    GAP,
    LIMIT,
    REMARK,
    colour_bar,
    colour_scale,
    is_finite,
    new_figure,
    remark_above,
    save_figure,
    scatter_losses,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LAYER_COLUMNS = 3
_COLUMNS = ("run", "waypoint", "tick", "loss", "distance_from_plane")


def draw_components(
    components: Components, folder: str | os.PathLike[str], stem: str = "pca", *, loss: str = "training loss"
) -> list[Path]:
    """Draw the waypoints in their principal components, coloured by loss; returns the PNGs' paths.

    Writes ``stem`` (first two components), ``stem-3d`` (where there is a third) and ``stem-layers`` (where the
    components have layers), each as PNG, SVG and CSV. Where a path arrived, the straight line between its endpoints is
    drawn too. A point without a finite loss is a hollow ring.

    Args:
        loss: label of the colours where some paths' losses are certified and others' logged.
    """
    losses, source = _losses(components, loss)
    whole = components.whole
    names = [f"pc{k + 1}" for k in range(len(whole.explained))]
    rows = list(_rows(components, whole, losses))
    pictures = []
    with new_figure(10, 7) as figure:
        axes = figure.subplots()
        points = _draw_paths(axes, components, whole, losses, legend=True)
        _label_axes(axes, whole)
        axes.set_title(_title(components) + "\n", loc="left", fontweight="bold")
        remark_above(axes, _explained_share(whole, 2))
        colour_bar(figure, points, axes, source)
        pictures.append(save_figure(figure, folder, stem, [*_COLUMNS, *names], rows))
    if len(names) > 2:
        with new_figure(10, 8) as figure:
            axes = figure.add_subplot(projection="3d")
            points = _draw_paths(axes, components, whole, losses, legend=True, dimensions=3)
            _label_axes(axes, whole)
            axes.set_title(f"{_title(components)}\n{_explained_share(whole, 3)}", loc="left", fontsize=11)
            colour_bar(figure, points, axes, source, pad=0.1)
            pictures.append(save_figure(figure, folder, f"{stem}-3d", [*_COLUMNS, *names], rows))
    if components.layers:
        columns = min(_LAYER_COLUMNS, len(components.layers))
        height = 2.9 * math.ceil(len(components.layers) / columns) + 0.6
        with new_figure(3.2 * columns + 1, height) as figure:
            _draw_layers(figure, components, losses, source, columns)
            rows = [[name, *row] for name, part in components.layers.items() for row in _rows(components, part, losses)]
            pictures.append(save_figure(figure, folder, f"{stem}-layers", ["layer", *_COLUMNS, *names], rows))
    return pictures


def _draw_layers(figure: Any, components: Components, losses: Sequence[Any], source: str, columns: int) -> None:
    panels = figure.subplots(math.ceil(len(components.layers) / columns), columns, squeeze=False).ravel()
    points = None
    for axes, (layer, part) in zip(panels, components.layers.items(), strict=False):
        if part.moves:
            points = _draw_paths(axes, components, part, losses, legend=False) or points
        else:
            axes.text(0.5, 0.5, "does not move", ha="center", va="center", color=REMARK, transform=axes.transAxes)
        share = 100 * float(part.explained[:2].sum())
        axes.set_title(f"{layer}  ({share:.0f} % shown)" if part.moves else layer, fontsize=10)
        axes.tick_params(labelsize=8)
    for axes in panels[len(components.layers) :]:
        axes.set_visible(False)
    figure.suptitle(f"{_title(components)}: each layer's own first two components", x=0.01, ha="left", fontsize=12)
    colour_bar(figure, points, figure.axes, source)


def _draw_paths(
    axes: Any, components: Components, part: Projection, losses: Sequence[Any], *, legend: bool, dimensions: int = 2
) -> Any:
    """Draw every path; returns what :func:`colour_bar` takes."""
    norm = colour_scale(value for path in losses for value in path)
    points = None
    for number, (path, coordinates) in enumerate(zip(components.trajectories, part.coordinates, strict=True)):
        line = [coordinates[:, k] if k < coordinates.shape[1] else 0 * coordinates[:, 0] for k in range(dimensions)]
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        axes.plot(*line, color=colour, linestyle=dash, linewidth=1.3, zorder=2, label=path.name)
        size = 26.0 if len(path) <= 200 else 9.0
        points = scatter_losses(axes, line, losses[number], norm, size=size if legend else size / 2) or points
        first, last = ([values[i] for values in line] for i in (0, -1))
        endpoint = {"linestyle": "none", "markeredgecolor": "white", "zorder": 5, "color": colour}
        factor = 1 if legend else 0.6
        axes.plot(*[[v] for v in first], marker="o", markersize=10 * factor, **endpoint)
        axes.plot(*[[v] for v in last], marker="*", markersize=15 * factor, **endpoint)
        if path.directory.arrived:
            straight = [[a, b] for a, b in zip(first, last, strict=True)]
            axes.plot(*straight, color=LIMIT, linewidth=1, linestyle=":", zorder=1)
    mark = {"color": LIMIT, "linestyle": "none", "markeredgecolor": "white"}
    nothing: list[list[float]] = [[]] * dimensions
    axes.plot(*nothing, marker="o", markersize=9, label="start", **mark)
    axes.plot(*nothing, marker="*", markersize=13, label="end (the destination, where the path arrived)", **mark)
    if any(path.directory.arrived for path in components.trajectories):
        axes.plot(*nothing, color=LIMIT, linewidth=1, linestyle=":", label="straight line from start to destination")
    if not all(is_finite(value) for path in losses for value in path):
        axes.scatter(*nothing, s=26, facecolors="none", edgecolors=GAP, linewidths=1.2, label="no finite loss known")
    if dimensions == 2:
        axes.set_aspect("equal", adjustable="datalim")
    if legend:
        axes.legend(loc="best")
    return points


def _label_axes(axes: Axes, part: Projection) -> None:
    setters = (axes.set_xlabel, axes.set_ylabel, getattr(axes, "set_zlabel", None))
    for k, set_label in enumerate(setters):
        if set_label is not None and k < len(part.explained):
            set_label(f"component {k + 1} ({100 * float(part.explained[k]):.1f} %)")


def _explained_share(part: Projection, dimensions: int) -> str:
    """A sentence about what the picture shows and leaves out."""
    share = 100 * float(part.explained[:dimensions].sum())
    space = "plane" if dimensions == 2 else "space"
    sentence = f"This {space} shows {share:.1f} % of the squared deviation from the mean"
    return f"{sentence}; distances in it are lower bounds of the true ones." if share < 99.95 else sentence + "."


def _title(components: Components) -> str:
    paths = components.trajectories
    names = ", ".join(path.name for path in paths) if len(paths) <= 3 else f"{len(paths)} paths"
    return f"{names}: {sum(map(len, paths)):,} waypoints of {paths[0].size:,} parameters"


def _losses(components: Components, loss: str) -> tuple[list[list[float | None]], str]:
    """Each path's losses at its waypoints, and where they come from."""
    values, sources = zip(*(path.losses() for path in components.trajectories), strict=True)
    mixed = f"{loss} (of the certificate, else as the search logged it)"
    return list(values), sources[0] if len(set(sources)) == 1 else mixed


def _rows(components: Components, part: Projection, losses: Sequence[Sequence[float | None]]) -> Iterator[list[Any]]:
    for number, path in enumerate(components.trajectories):
        for i, tick in enumerate(path.ticks):
            coordinates = part.coordinates[number][i]
            distance = float(part.hidden[number][i])
            yield [path.name, i, tick, losses[number][i], distance, *map(float, coordinates)]
