"""The plane through three networks: contours, and a surface, with a path's true loss beside that of its shadow."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.plane import COLUMNS, Plane, Shadow
from .style import (
    BLUE,
    COLOUR_MAP,
    LIMIT,
    ORANGE,
    REMARK,
    VERMILION,
    colour_bar,
    new_figure,
    plain_number,
    save_figure,
    scale,
    scatter,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = 24
#: The colour scale ends at this multiple of the highest loss of networks and path, or the grid's highest: what lies far
#: above says nothing about the path and would take all colours.
_ABOVE = 100.0


def draw_plane(found: Plane, folder: str | os.PathLike[str], stem: str = "plane") -> list[Path]:
    """Write ``stem`` (contours; with a path also its loss beside its shadow's) and ``stem-surface`` (3-D), each as PNG,
    SVG and CSV.

    Where the loss is not finite the ground is hatched. Returns the PNGs.
    """
    return [_contours(found, folder, stem), _surface(found, folder, f"{stem}-surface")]


def _contours(found: Plane, folder: str | os.PathLike[str], stem: str) -> Path:
    with new_figure(13.5 if found.shadow else 9, 6.6) as figure:
        if found.shadow is None:
            ground = figure.subplots()
        else:
            layout = figure.add_gridspec(2, 2, width_ratios=[1.35, 1], height_ratios=[3, 2])
            ground = figure.add_subplot(layout[:, 0])
            losses = figure.add_subplot(layout[0, 1])
            _draw_losses(losses, found.shadow)
            _draw_distances(figure.add_subplot(layout[1, 1], sharex=losses), found.shadow)
        _draw_ground(figure, ground, found)
        return save_figure(figure, folder, stem, COLUMNS, found.rows())


def _norm(found: Plane) -> Any:
    known = found.loss[np.isfinite(found.loss)]
    marks = [found.corner_losses, *([found.shadow.true, found.shadow.seen] if found.shadow else [])]
    near = np.concatenate([part[np.isfinite(part)] for part in marks])
    top = min(float(known.max(initial=0)), _ABOVE * float(near.max())) if near.size and near.max() > 0 else None
    values = [*known.tolist(), *near.tolist()]
    return scale([min(value, top) if top is not None else value for value in values])


def _draw_ground(figure: Any, axes: Axes, found: Plane) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    norm = _norm(found)
    axes.grid(False)
    if norm is None:
        axes.set_xlim(found.x[0], found.x[-1])
        axes.set_ylim(found.y[0], found.y[-1])
    else:
        low, high = float(norm.vmin), float(norm.vmax)
        spaced = np.geomspace if isinstance(norm, LogNorm) else np.linspace
        levels = spaced(low, high, _LEVELS)
        shown = np.ma.masked_invalid(found.loss)
        filled = axes.contourf(found.x, found.y, shown, levels, norm=norm, cmap=COLOUR_MAP, extend="both")
        axes.contour(found.x, found.y, shown, levels[::3], colors="white", linewidths=0.5, alpha=0.6)
        colour_bar(figure, filled, axes, f"training loss ({found.samples:,} samples)")
    if found.gaps:
        axes.patch.set(facecolor="#eeeeee", hatch="///", edgecolor="#999999")
        j, i = np.nonzero(~np.isfinite(found.loss))
        axes.plot(found.x[i], found.y[j], linestyle="none", marker="x", markersize=4, color=LIMIT)
    if found.shadow is not None:
        _draw_shadow(axes, found.shadow, norm)
    for name, (x, y) in zip(found.names, found.corners, strict=True):
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
    if found.gaps:
        handles.append(Patch(facecolor="#eeeeee", hatch="///", edgecolor="#999999"))
        labels.append(f"loss not finite ({found.gaps} grid points)")
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=10)
    axes.set_aspect("equal")
    axes.set_xlabel("distance in the plane")
    axes.set_ylabel("distance in the plane")
    statistics = "" if found.statistics == "stored" else "; BatchNorm statistics re-estimated"
    axes.set_title(f"Training loss in the plane through\n{', '.join(found.names)}{statistics}", loc="left", fontsize=11)


def _draw_shadow(axes: Axes, shadow: Shadow, norm: Any) -> None:
    x, y = shadow.feet.T
    axes.plot(x, y, color="black", linewidth=1.2, zorder=4, label=f"shadow of the path {shadow.name}, not the path")
    scatter(axes, (x, y), shadow.true.tolist(), norm, size=34, edgecolors="black", linewidths=0.9, zorder=5)
    axes.plot(
        *([], []),
        linestyle="none",
        marker="o",
        markersize=6,
        markerfacecolor="none",
        markeredgecolor="black",
        label="dots: the waypoints' own, true loss",
    )


def _draw_losses(axes: Axes, shadow: Shadow) -> None:
    dot = "." if len(shadow.waypoints) <= 60 else ""
    axes.plot(
        shadow.waypoints, _finite(shadow.true), color=BLUE, linewidth=2, marker=dot, label="true: of the waypoints"
    )
    axes.plot(
        *(shadow.waypoints, _finite(shadow.seen)),
        color=ORANGE,
        linewidth=1.8,
        linestyle="--",
        marker=dot,
        label="of their shadows in the plane",
    )
    for values, colour in ((shadow.true, BLUE), (shadow.seen, ORANGE)):
        for waypoint, value in zip(shadow.waypoints, values, strict=True):
            if not math.isfinite(value):
                axes.axvline(waypoint, color=colour, linewidth=0.8, linestyle=":")
    known = [v for v in (*shadow.true, *shadow.seen) if math.isfinite(v) and v > 0]
    if known and max(known) > 10 * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("What the contours under the path are not: its loss", loc="left", fontsize=11)
    axes.tick_params(labelbottom=False)


def _draw_distances(axes: Axes, shadow: Shadow) -> None:
    axes.plot(shadow.waypoints, shadow.distances, color=REMARK, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"waypoint of {shadow.name}")
    axes.set_ylabel("distance\nfrom the plane")


def _surface(found: Plane, folder: str | os.PathLike[str], stem: str) -> Path:
    from matplotlib.colors import LogNorm

    with new_figure(6.5, 5.6) as figure:
        axes: Any = figure.add_subplot(projection="3d")
        norm = _norm(found)
        log = isinstance(norm, LogNorm)

        def height(values: Any) -> Any:
            """Loss, cut off above where the colours end; its logarithm where the colours are logarithmic."""
            cut = np.where(np.isfinite(values), np.clip(values, norm.vmin, norm.vmax), math.nan)
            return np.log10(cut) if log else cut

        axes.set_title(f"Training loss over the plane through\n{', '.join(found.names)}", loc="left", fontsize=11)
        if norm is None:
            axes.text2D(0.5, 0.5, "no finite loss on this plane", ha="center", transform=axes.transAxes)
        else:
            x, y = np.meshgrid(found.x, found.y)
            import matplotlib

            colours = matplotlib.colormaps[COLOUR_MAP](norm(np.ma.masked_invalid(found.loss)))
            options = {
                "linewidth": 0.2,
                "edgecolor": "white",
                "alpha": 0.75,
                "rstride": 1,
                "cstride": 1,
                "shade": False,
            }
            axes.plot_surface(x, y, height(found.loss), facecolors=colours, **options)
            if found.shadow is not None:
                s = found.shadow
                feet = s.feet.T
                axes.plot(
                    *feet, height(s.true), color=VERMILION, linewidth=2.4, zorder=8, label="path at its true loss"
                )
                axes.plot(
                    *(*feet, height(s.seen)),
                    color="black",
                    linewidth=1.4,
                    linestyle="--",
                    zorder=9,
                    label="its shadow on the surface",
                )
                axes.legend(frameon=False, fontsize=9, loc="upper left")
            if found.gaps:
                axes.text2D(0.01, 0.02, f"holes: loss not finite ({found.gaps} grid points)", transform=axes.transAxes)
            for name, corner, loss in zip(found.names, found.corners, found.corner_losses, strict=True):
                axes.text(*corner, float(height(loss)), f"  {name}", fontsize=9, zorder=10)
        axes.set_xlabel("distance in the plane")
        axes.set_ylabel("distance in the plane")
        axes.set_zlabel("log₁₀ training loss" if log else "training loss")
        axes.view_init(elev=38, azim=-60)
        return save_figure(figure, folder, stem, COLUMNS, found.rows())


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, math.nan)
