"""The figures of the plane through three networks: contours and surface, with a path's loss beside its projection's."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.plane import COLUMNS, Plane, ProjectedPath
from .style import (
    BLUE,
    COLOUR_MAP,
    LIMIT,
    ORANGE,
    REMARK,
    VERMILION,
    colour_bar,
    colour_scale,
    is_finite,
    log_if_wide,
    new_figure,
    save_figure,
    scatter_losses,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = 24
#: The colour scale ends at this multiple of the highest loss of networks and path, or at the grid's highest: losses far
#: above say nothing about the path and would take all colours.
_MOST_ABOVE = 100.0


def draw_plane(plane: Plane, folder: str | os.PathLike[str], stem: str = "plane") -> list[Path]:
    """Draw the loss on the plane as contours and as a 3-D surface; returns the PNGs' paths.

    Writes ``stem`` (contours, and with a path its loss beside its projection's) and ``stem-surface``, each as PNG, SVG
    and CSV. Where the loss is not finite the contours are hatched.
    """
    return [_contours(plane, folder, stem), _surface(plane, folder, f"{stem}-surface")]


def _contours(plane: Plane, folder: str | os.PathLike[str], stem: str) -> Path:
    with new_figure(13.5 if plane.path else 9, 6.6) as figure:
        if plane.path is None:
            contours = figure.subplots()
        else:
            layout = figure.add_gridspec(2, 2, width_ratios=[1.35, 1], height_ratios=[3, 2])
            contours = figure.add_subplot(layout[:, 0])
            losses = figure.add_subplot(layout[0, 1])
            _draw_losses(losses, plane.path)
            _draw_distances(figure.add_subplot(layout[1, 1], sharex=losses), plane.path)
        _draw_contours(figure, contours, plane)
        return save_figure(figure, folder, stem, COLUMNS, plane.rows())


def _norm(plane: Plane) -> Any:
    """The colour scale; None where no loss is finite."""
    known = plane.loss[np.isfinite(plane.loss)]
    losses = [plane.corner_losses, *([plane.path.loss, plane.path.projected_loss] if plane.path else [])]
    near = np.concatenate([part[np.isfinite(part)] for part in losses])
    top = min(float(known.max(initial=0)), _MOST_ABOVE * float(near.max())) if near.size and near.max() > 0 else None
    values = [*known.tolist(), *near.tolist()]
    return colour_scale([min(value, top) if top is not None else value for value in values])


def _draw_contours(figure: Any, axes: Axes, plane: Plane) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    norm = _norm(plane)
    axes.grid(False)
    if norm is None:
        axes.set_xlim(plane.x[0], plane.x[-1])
        axes.set_ylim(plane.y[0], plane.y[-1])
    else:
        low, high = float(norm.vmin), float(norm.vmax)
        interpolate = np.geomspace if isinstance(norm, LogNorm) else np.linspace
        levels = interpolate(low, high, _LEVELS)
        shown = np.ma.masked_invalid(plane.loss)
        filled = axes.contourf(plane.x, plane.y, shown, levels, norm=norm, cmap=COLOUR_MAP, extend="both")
        axes.contour(plane.x, plane.y, shown, levels[::3], colors="white", linewidths=0.5, alpha=0.6)
        colour_bar(figure, filled, axes, f"training loss ({plane.samples:,} samples)")
    if plane.gaps:
        axes.patch.set(facecolor="#eeeeee", hatch="///", edgecolor="#999999")
        j, i = np.nonzero(~np.isfinite(plane.loss))
        axes.plot(plane.x[i], plane.y[j], linestyle="none", marker="x", markersize=4, color=LIMIT)
    if plane.path is not None:
        _draw_path(axes, plane.path, norm)
    for name, (x, y) in zip(plane.names, plane.corners, strict=True):
        axes.plot(x, y, marker="X", markersize=11, color=VERMILION, markeredgecolor="white", linestyle="none", zorder=6)
        axes.annotate(
            *(name, (x, y), (8, 8), "data"),
            textcoords="offset points",
            fontsize=10,
            fontweight="bold",
            zorder=7,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
        )
    handles, labels = axes.get_legend_handles_labels()
    if plane.gaps:
        handles.append(Patch(facecolor="#eeeeee", hatch="///", edgecolor="#999999"))
        labels.append(f"loss not finite ({plane.gaps} grid points)")
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=10)
    axes.set_aspect("equal")
    axes.set_xlabel("distance in the plane")
    axes.set_ylabel("distance in the plane")
    statistics = "" if plane.statistics == "stored" else "; BatchNorm statistics re-estimated"
    axes.set_title(f"Training loss in the plane through\n{', '.join(plane.names)}{statistics}", loc="left", fontsize=11)


def _draw_path(axes: Axes, path: ProjectedPath, norm: Any) -> None:
    x, y = path.positions.T
    axes.plot(x, y, color="black", linewidth=1.2, zorder=4, label=f"projection of the path {path.name}, not the path")
    scatter_losses(axes, (x, y), path.loss.tolist(), norm, size=34, edgecolors="black", linewidths=0.9, zorder=5)
    axes.plot(
        *([], []),
        linestyle="none",
        marker="o",
        markersize=6,
        markerfacecolor="none",
        markeredgecolor="black",
        label="dots: loss of the waypoints",
    )


def _draw_losses(axes: Axes, path: ProjectedPath) -> None:
    dot = "." if len(path.waypoints) <= 60 else ""
    axes.plot(path.waypoints, with_gaps(path.loss), color=BLUE, linewidth=2, marker=dot, label="of the waypoints")
    axes.plot(
        *(path.waypoints, with_gaps(path.projected_loss)),
        color=ORANGE,
        linewidth=1.8,
        linestyle="--",
        marker=dot,
        label="of their projections on the plane",
    )
    for values, colour in ((path.loss, BLUE), (path.projected_loss, ORANGE)):
        for waypoint, value in zip(path.waypoints, values, strict=True):
            if not is_finite(value):
                axes.axvline(waypoint, color=colour, linewidth=0.8, linestyle=":")
    log_if_wide(axes, (*path.loss, *path.projected_loss))
    axes.set_ylabel("training loss")
    axes.legend()
    axes.set_title("The path's loss is not that of the contours under it", loc="left", fontsize=11)
    axes.tick_params(labelbottom=False)


def _draw_distances(axes: Axes, path: ProjectedPath) -> None:
    axes.plot(path.waypoints, path.distances, color=REMARK, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"waypoint of {path.name}")
    axes.set_ylabel("distance\nfrom the plane")


def _surface(plane: Plane, folder: str | os.PathLike[str], stem: str) -> Path:
    from matplotlib.colors import LogNorm

    with new_figure(6.5, 5.6) as figure:
        axes: Any = figure.add_subplot(projection="3d")
        norm = _norm(plane)
        log = isinstance(norm, LogNorm)

        def height(values: Any) -> Any:
            """Losses clipped to the colour scale; their logarithms where the scale is logarithmic."""
            clipped = np.where(np.isfinite(values), np.clip(values, norm.vmin, norm.vmax), math.nan)
            return np.log10(clipped) if log else clipped

        axes.set_title(f"Training loss over the plane through\n{', '.join(plane.names)}", loc="left", fontsize=11)
        if norm is None:
            axes.text2D(0.5, 0.5, "no finite loss on this plane", ha="center", transform=axes.transAxes)
        else:
            x, y = np.meshgrid(plane.x, plane.y)
            import matplotlib

            colours = matplotlib.colormaps[COLOUR_MAP](norm(np.ma.masked_invalid(plane.loss)))
            options = {
                "linewidth": 0.2,
                "edgecolor": "white",
                "alpha": 0.75,
                "rstride": 1,
                "cstride": 1,
                "shade": False,
            }
            axes.plot_surface(x, y, height(plane.loss), facecolors=colours, **options)
            if plane.path is not None:
                s = plane.path
                feet = s.positions.T
                axes.plot(*feet, height(s.loss), color=VERMILION, linewidth=2.4, zorder=8, label="path at its loss")
                axes.plot(
                    *(*feet, height(s.projected_loss)),
                    color="black",
                    linewidth=1.4,
                    linestyle="--",
                    zorder=9,
                    label="its projection on the surface",
                )
                axes.legend(loc="upper left")
            if plane.gaps:
                axes.text2D(0.01, 0.02, f"holes: loss not finite ({plane.gaps} grid points)", transform=axes.transAxes)
            for name, corner, loss in zip(plane.names, plane.corners, plane.corner_losses, strict=True):
                axes.text(*corner, float(height(loss)), f"  {name}", fontsize=9, zorder=10)
        axes.set_xlabel("distance in the plane")
        axes.set_ylabel("distance in the plane")
        axes.set_zlabel("log₁₀ training loss" if log else "training loss")
        axes.view_init(elev=38, azim=-60)
        return save_figure(figure, folder, stem, COLUMNS, plane.rows())
