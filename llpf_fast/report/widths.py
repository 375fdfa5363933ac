"""The figures of radial widths (of networks, along a path, over a sweep) and of random subspaces."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import (
    BLUE,
    COLOURS,
    GREEN,
    REMARK,
    VERMILION,
    as_table,
    finite,
    is_finite,
    new_figure,
    plain_number,
    save_figure,
    with_gaps,
)

if TYPE_CHECKING:
    from ..analysis.width_sweep import WidthSweep
    from ..analysis.widths import PathWidth, PointWidth


def draw_networks(widths: Sequence[PointWidth], law: str, folder: str | os.PathLike[str], stem: str = "widths") -> Path:
    """Draw every ray's radius, and the median, for each network; returns the PNG's path.

    The CSV holds every ray.

    Args:
        law: in words, how directions are drawn and where the width ends; written under the figure.
    """
    with new_figure(max(5.0, 1.3 * len(widths) + 3), 4.4) as figure:
        axes = figure.subplots()
        for i, width in enumerate(widths):
            radii = finite(width.radii)
            axes.plot([i] * len(radii), radii, "o", color=BLUE, alpha=0.45, markersize=5, label=None if i else "rays")
            if math.isfinite(width.median):
                axes.plot(i, width.median, "_", color=VERMILION, markersize=26, label=None if i else "median", mew=2.5)
            open_rays = len(width.radii) - len(radii)
            if open_rays:
                axes.annotate(f"{open_rays} rays open", (i, axes.get_ylim()[1]), ha="center", fontsize=8, color=REMARK)
        axes.set_xticks(range(len(widths)), [width.name for width in widths], rotation=20)
        axes.set_xlim(-0.6, len(widths) - 0.4)
        axes.set_ylim(0, 1.2 * axes.dataLim.y1 if widths else 1)
        axes.set_ylabel("radial width")
        axes.legend(ncols=2, loc="upper left")
        _write_below(figure, law)
        rows = [
            [width.name, ray, radius, radius / width.norm if width.norm else None, width.loss, width.threshold]
            for width in widths
            for ray, radius in enumerate(width.radii)
        ]
        return save_figure(figure, folder, stem, ["network", "ray", "radius", "relative", "loss", "threshold"], rows)


def draw_path_widths(
    widths: Sequence[PathWidth], law: str, folder: str | os.PathLike[str], stem: str = "widths"
) -> Path:
    """Draw widths across a path (median and range), along it, and relative to the norm; returns the PNG's path."""
    with new_figure(10.0, 4.4) as figure:
        left, right = figure.subplots(1, 2)
        x = [point.position for point in widths]
        radii = [finite(point.width.radii) or [math.nan] for point in widths]
        left.fill_between(x, list(map(min, radii)), list(map(max, radii)), color=BLUE, alpha=0.18, linewidth=0)
        medians = with_gaps(point.width.median for point in widths)
        left.plot(x, medians, "o-", color=BLUE, label="across: median, range")
        for side, (name, colour, dash) in enumerate((("forward", VERMILION, "--"), ("backward", GREEN, "-."))):
            values = with_gaps(point.width.along[side] if point.width.along else None for point in widths)
            left.plot(x, values, "s", linestyle=dash, color=colour, markersize=4, label=f"along, {name}")
        left.set_ylabel("radial width")
        relative = with_gaps(point.width.median / point.width.norm if point.width.norm else None for point in widths)
        right.plot(x, relative, "o-", color=BLUE, label="across, relative to the norm")
        right.set_ylabel("width / norm of the parameters")
        for axes in (left, right):
            axes.set_xlabel("position on the path (share of its length)")
            axes.set_ylim(bottom=0)
            axes.legend()
        _write_below(figure, law)
        columns = ["position", "waypoint", *widths[0].width.row()]
        rows = [[point.position, point.waypoint, *point.width.row().values()] for point in widths]
        return save_figure(figure, folder, stem, columns, rows)


def draw_sweep(sweep: WidthSweep, folder: str | os.PathLike[str], stem: str = "width-sweep") -> Path:
    """Draw absolute and relative width, after training and at matched loss; returns the PNG's path.

    Each axis of the sweep has a column of panels.
    """
    from ..analysis.width_sweep import AXES

    summary = sweep.summary()
    kinds = [("final", "after training", BLUE, "-", "o")]
    if sweep.matched_loss is not None:
        kinds.append(("matched", f"when the loss first was {sweep.matched_loss:g}", VERMILION, "--", "s"))
    with new_figure(3.3 * len(sweep.axes) + 0.8, 6.2) as figure:
        panels = figure.subplots(2, len(sweep.axes), squeeze=False, sharey="row", sharex="col")
        for column, (axis, values) in enumerate(sweep.axes.items()):
            x = list(range(len(values)))
            for axes, measure in zip(panels[:, column], ("width", "relative"), strict=True):
                for kind, label, colour, dash, marker in kinds:
                    for cell in sweep.cells:
                        value = cell.measures()[f"{kind}_{measure}"]
                        if cell.axis == axis and is_finite(value):
                            axes.plot(values.index(cell.value), value, marker, color=colour, alpha=0.3, markersize=4)
                    means = with_gaps(row[f"{kind}_{measure}"] for row in summary if row["axis"] == axis)
                    axes.plot(x, means, dash, marker=marker, color=colour, label=label)
                axes.set_xlim(-0.4, len(values) - 0.6)
            panels[1, column].set_xticks(x, [plain_number(value) for value in values])
            panels[1, column].set_xlabel(AXES[axis])
        for row, label in enumerate(("radial width", "width / norm of the parameters")):
            # The panels of a row share their y axis, so its limit is known only now.
            panels[row, 0].set_ylim(0, 1.1 * max(axes.dataLim.y1 for axes in panels[row]))
            panels[row, 0].set_ylabel(label)
        panels[0, 0].legend(fontsize=8)
        _write_below(figure, sweep.law)
        return save_figure(figure, folder, stem, *as_table([cell.row() for cell in sweep.cells]))


def draw_subspace(
    results: dict[str, Any], folder: str | os.PathLike[str], stem: str = "subspace", note: str = ""
) -> Path:
    """Draw accuracy (or loss) against the dimension of the random subspace; returns the PNG's path.

    Args:
        results: label -> IntrinsicDimension; all are drawn in one figure.
        note: written under the figure.
    """
    with new_figure(7.5, 4.6) as figure:
        axes = figure.subplots()
        rows: list[list[Any]] = []
        for number, (label, result) in enumerate(results.items()):
            colour = COLOURS[number % len(COLOURS)]
            summary = result.summary()
            x, y = [row["dimension"] for row in summary], [row[result.measure] for row in summary]
            runs = [run for run in result.runs if getattr(run, result.measure) is not None]
            dimensions, values = [run.dimension for run in runs], [getattr(run, result.measure) for run in runs]
            axes.plot(dimensions, values, "o", color=colour, alpha=0.35, markersize=4)
            axes.plot(x, with_gaps(y), "-", color=colour, label=label)
            axes.axhline(result.level, color=colour, linestyle=":", linewidth=1.2, label=f"level {result.level:.4g}")
            if result.dimension is not None:
                axes.axvline(
                    result.dimension, color=colour, linestyle="--", linewidth=1, label=f"d = {result.dimension}"
                )
            rows += [
                [label, run.dimension, run.seed, run.loss, run.train_accuracy, run.test_accuracy, run.distance]
                for run in result.runs
            ]
        if all(row[1] > 0 for row in rows) and max(row[1] for row in rows) > 20 * min(row[1] for row in rows):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(plain_number)
        axes.set_xlabel("dimension of the random subspace")
        axes.set_ylabel(next(iter(results.values())).measure.replace("_", " "))
        axes.legend()
        if note:
            _write_below(figure, note)
        columns = ["label", "dimension", "seed", "loss", "train_accuracy", "test_accuracy", "distance"]
        return save_figure(figure, folder, stem, columns, rows)


def draw_wedge_law(
    rows: Sequence[Mapping[str, Any]], size: int, wedge: int, folder: str | os.PathLike[str], stem: str = "wedge"
) -> Path:
    """Draw the best distance to a linear wedge in random subspaces beside the law; returns the PNG's path.

    Args:
        rows: dimension, law, root_mean_square, nearest, farthest (shares of the start's norm); further keys go to the
            CSV.
        size: number of parameters, D in the figure.
        wedge: dimension of the wedge, n in the figure.
    """
    with new_figure(7.5, 4.6) as figure:
        axes = figure.subplots()
        x = [row["dimension"] for row in rows]
        nearest, farthest = ([row[name] for row in rows] for name in ("nearest", "farthest"))
        axes.fill_between(x, nearest, farthest, color=BLUE, alpha=0.18, linewidth=0)
        label = "best point, by least squares: root mean square, range"
        axes.plot(x, [row["root_mean_square"] for row in rows], "o", color=BLUE, label=label)
        axes.plot(x, [row["law"] for row in rows], "--", color=VERMILION, label="law: sqrt((D - n - d) / D)")
        axes.axvline(size - wedge, color=REMARK, linestyle=":", label=f"D - n = {size - wedge}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("dimension d of the random subspace")
        axes.set_ylabel("distance to the wedge / norm of the start")
        axes.set_title(f"one linear wedge of {wedge} dimensions in {size}", fontsize=10, color=REMARK)
        axes.legend()
        return save_figure(figure, folder, stem, *as_table(rows))


def _write_below(figure: Any, text: str) -> None:
    """Write ``text`` under the figure: a width means nothing without its threshold and how directions are drawn."""
    characters = int(figure.get_size_inches()[0] * 15)
    figure.supxlabel("\n".join(textwrap.wrap(text, characters)), fontsize=8, color=REMARK)
