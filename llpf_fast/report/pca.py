"""Paths along their principal components, the whole network and layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.pca import Components, Projection
from .style import COLOURS, DASHES, GAP, LIMIT, REMARK, colour_bar, finite, new_figure, save_figure, scale, scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAYER_COLUMNS = 3


def draw_components(
    found: Components, folder: str | os.PathLike[str], stem: str = "pca", *, loss: str = "training loss"
) -> list[Path]:
    """Write ``stem`` (first two components), ``stem-3d`` (where there is a third) and ``stem-layers`` (where layers
    were asked for), each as PNG, SVG and CSV; colour is the waypoints' loss (``Trajectory.losses``).

    The straight line between the ends of a path that arrived is drawn too; a point without a finite loss is a hollow
    ring. Returns the PNGs.
    """
    losses, said = _losses(found, loss)
    names = [f"pc{k + 1}" for k in range(len(found.whole.explained))]
    out = []
    with new_figure(10, 7) as figure:
        axes = figure.subplots()
        points = _draw(axes, found, found.whole, losses, legend=True)
        _axis_names(axes, found.whole)
        axes.set_title(_title(found) + "\n", loc="left", fontweight="bold")
        axes.annotate(
            _hidden(found.whole, 2),
            (0, 1),
            (0, 6),
            "axes fraction",
            textcoords="offset points",
            fontsize=10,
            color=REMARK,
        )
        colour_bar(figure, points, axes, said)
        rows = list(_rows(found, found.whole, losses))
        out.append(save_figure(figure, folder, stem, [*_COLUMNS, *names], rows))
    if len(names) > 2:
        with new_figure(10, 8) as figure:
            axes = figure.add_subplot(projection="3d")
            points = _draw(axes, found, found.whole, losses, legend=True, dimensions=3)
            _axis_names(axes, found.whole)
            axes.set_title(f"{_title(found)}\n{_hidden(found.whole, 3)}", loc="left", fontsize=11)
            colour_bar(figure, points, axes, said, pad=0.1)
            out.append(save_figure(figure, folder, f"{stem}-3d", [*_COLUMNS, *names], rows))
    if found.layers:
        rows = [[layer, *row] for layer, part in found.layers.items() for row in _rows(found, part, losses)]
        with _layer_figure(found, losses, said) as figure:
            out.append(save_figure(figure, folder, f"{stem}-layers", ["layer", *_COLUMNS, *names], rows))
    return out


_COLUMNS = ("run", "waypoint", "tick", "loss", "distance_from_plane")


class _layer_figure:  # noqa: N801 - a context manager
    """Small multiples, a panel a layer."""

    def __init__(self, found: Components, losses: list[list[float | None]], said: str) -> None:
        self._found, self._losses, self._said = found, losses, said
        columns = min(_LAYER_COLUMNS, len(found.layers))
        rows = math.ceil(len(found.layers) / columns)
        self._shape = rows, columns
        self._context = new_figure(3.2 * columns + 1, 2.9 * rows + 0.6)

    def __enter__(self) -> Figure:
        figure = self._context.__enter__()
        panels = figure.subplots(*self._shape, squeeze=False).flat
        points = None
        for axes, (layer, part) in zip(panels, self._found.layers.items(), strict=False):
            if part.moves:
                points = _draw(axes, self._found, part, self._losses, legend=False) or points
            else:
                axes.text(0.5, 0.5, "does not move", ha="center", va="center", color=REMARK, transform=axes.transAxes)
            share = 100 * float(part.explained[:2].sum())
            axes.set_title(f"{layer}  ({share:.0f} % shown)" if part.moves else layer, fontsize=10)
            axes.tick_params(labelsize=8)
        for axes in list(panels):
            axes.set_visible(False)
        for axes in figure.axes[len(self._found.layers) :]:
            axes.set_visible(False)
        figure.suptitle(f"{_title(self._found)}: each layer's own first two components", x=0.01, ha="left", fontsize=12)
        colour_bar(figure, points, figure.axes, self._said)
        return figure

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _draw(
    axes: Any, found: Components, part: Projection, losses: Sequence[Any], *, legend: bool, dimensions: int = 2
) -> Any:
    norm = scale(value for path in losses for value in path)
    points = None
    for number, (path, coordinates) in enumerate(zip(found.trajectories, part.coordinates, strict=True)):
        place = [coordinates[:, k] if k < coordinates.shape[1] else 0 * coordinates[:, 0] for k in range(dimensions)]
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        axes.plot(*place, color=colour, linestyle=dash, linewidth=1.3, zorder=2, label=path.name)
        size = 26.0 if len(path) <= 200 else 9.0
        points = scatter(axes, place, losses[number], norm, size=size if legend else size / 2) or points
        first, last = ([value[i] for value in place] for i in (0, -1))
        ends = {"linestyle": "none", "markeredgecolor": "white", "zorder": 5, "color": colour}
        scaled = 1 if legend else 0.6
        axes.plot(*[[v] for v in first], marker="o", markersize=10 * scaled, **ends)
        axes.plot(*[[v] for v in last], marker="*", markersize=15 * scaled, **ends)
        if path.directory.arrived:
            line = [[a, b] for a, b in zip(first, last, strict=True)]
            axes.plot(*line, color=LIMIT, linewidth=1, linestyle=":", zorder=1)
    mark = {"color": LIMIT, "linestyle": "none", "markeredgecolor": "white"}
    nothing: list[list[float]] = [[]] * dimensions
    axes.plot(*nothing, marker="o", markersize=9, label="start", **mark)
    axes.plot(*nothing, marker="*", markersize=13, label="end (the destination, where the path arrived)", **mark)
    if any(path.directory.arrived for path in found.trajectories):
        axes.plot(*nothing, color=LIMIT, linewidth=1, linestyle=":", label="straight line between the ends")
    if any(len(finite(path)) < len(path) for path in losses):
        axes.scatter(*nothing, s=26, facecolors="none", edgecolors=GAP, linewidths=1.2, label="no finite loss known")
    if dimensions == 2:
        axes.set_aspect("equal", adjustable="datalim")
    if legend:
        axes.legend(frameon=False, fontsize=9, loc="best")
    return points


def _axis_names(axes: Axes, part: Projection) -> None:
    sides = (axes.set_xlabel, axes.set_ylabel, getattr(axes, "set_zlabel", None))
    for k, side in enumerate(sides):
        if side is not None and k < len(part.explained):
            side(f"component {k + 1} ({100 * float(part.explained[k]):.1f} %)")


def _hidden(part: Projection, shown: int) -> str:
    """What the picture leaves out, in words."""
    share = 100 * float(part.explained[:shown].sum())
    what = "plane" if shown == 2 else "space"
    said = f"This {what} shows {share:.1f} % of the squared deviation from the mean"
    return f"{said}; distances in it are lower bounds of the true ones." if share < 99.95 else said + "."


def _title(found: Components) -> str:
    names = [path.name for path in found.trajectories]
    listed = ", ".join(names) if len(names) <= 3 else f"{len(names)} paths"
    return f"{listed}: {sum(map(len, found.trajectories)):,} waypoints of {found.trajectories[0].size:,} parameters"


def _losses(found: Components, loss: str) -> tuple[list[list[float | None]], str]:
    values, sources = zip(*(path.losses() for path in found.trajectories), strict=True)
    said = sorted(set(sources))
    return list(values), said[0] if len(said) == 1 else f"{loss} (of the certificate, else as the search logged it)"


def _rows(found: Components, part: Projection, losses: Sequence[Sequence[float | None]]) -> Iterator[list[Any]]:
    for number, path in enumerate(found.trajectories):
        for i, tick in enumerate(path.ticks):
            coordinates = part.coordinates[number][i]
            hidden = float(part.hidden[number][i])
            yield [path.name, i, tick, losses[number][i], hidden, *map(float, coordinates)]
