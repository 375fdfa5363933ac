"""Figures of radial widths: of networks, along a path, and over a sweep."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import BLUE, COLOURS, GREEN, REMARK, VERMILION, new_figure, plain_number, save_figure

if TYPE_CHECKING:
    from ..analysis.width_sweep import WidthSweep
    from ..analysis.widths import PathWidth, PointWidth


def draw_networks(widths: Sequence[PointWidth], law: str, folder: str | os.PathLike[str], stem: str = "widths") -> Path:
    """Every ray's radius, and the median, for each network. The CSV holds every ray. Returns the PNG's path."""
    with new_figure(max(5.0, 1.3 * len(widths) + 3), 4.4) as figure:
        axes = figure.subplots()
        for i, width in enumerate(widths):
            finite = [radius for radius in width.radii if math.isfinite(radius)]
            axes.plot([i] * len(finite), finite, "o", color=BLUE, alpha=0.45, markersize=5, label=_once("rays", i))
            if math.isfinite(width.median):
                axes.plot(i, width.median, "_", color=VERMILION, markersize=26, label=_once("median", i), mew=2.5)
            is_open = len(width.radii) - len(finite)
            if is_open:
                axes.annotate(f"{is_open} rays open", (i, axes.get_ylim()[1]), ha="center", fontsize=8, color=REMARK)
        axes.set_xticks(range(len(widths)), [width.name for width in widths], rotation=20)
        axes.set_xlim(-0.6, len(widths) - 0.4)
        axes.set_ylim(0, 1.2 * axes.dataLim.y1 if widths else 1)
        axes.set_ylabel("radial width")
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
        _say(figure, law)
        rows = [
            [width.name, ray, radius, radius / width.norm if width.norm else None, width.loss, width.threshold]
            for width in widths
            for ray, radius in enumerate(width.radii)
        ]
        return save_figure(figure, folder, stem, ["network", "ray", "radius", "relative", "loss", "threshold"], rows)


def draw_path_widths(
    widths: Sequence[PathWidth], law: str, folder: str | os.PathLike[str], stem: str = "widths"
) -> Path:
    """Widths across (median and range) and along a path, and relative to the norm. Returns the PNG's path."""
    with new_figure(10.0, 4.4) as figure:
        left, right = figure.subplots(1, 2)
        x = [each.position for each in widths]
        inside = [[r for r in each.width.radii if math.isfinite(r)] or [math.nan] for each in widths]
        left.fill_between(x, [min(r) for r in inside], [max(r) for r in inside], color=BLUE, alpha=0.18, linewidth=0)
        left.plot(x, [_finite(each.width.median) for each in widths], "o-", color=BLUE, label="across: median, range")
        for side, (name, colour, dash) in enumerate((("forward", VERMILION, "--"), ("backward", GREEN, "-."))):
            values = [_finite(each.width.along[side]) if each.width.along else math.nan for each in widths]
            left.plot(x, values, "s", linestyle=dash, color=colour, markersize=4, label=f"along, {name}")
        left.set_ylabel("radial width")
        right.plot(
            x,
            [_finite(each.width.median / each.width.norm) if each.width.norm else math.nan for each in widths],
            "o-",
            color=BLUE,
            label="across, relative to the norm",
        )
        right.set_ylabel("width / norm of the parameters")
        for axes in (left, right):
            axes.set_xlabel("position on the path (share of its length)")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
        _say(figure, law)
        columns = ["position", "waypoint", *widths[0].width.row()]
        rows = [[each.position, each.waypoint, *each.width.row().values()] for each in widths]
        return save_figure(figure, folder, stem, columns, rows)


def draw_sweep(sweep: WidthSweep, folder: str | os.PathLike[str], stem: str = "width-sweep") -> Path:
    """A column an axis; absolute and relative width, after training and at matched loss. Returns the PNG's path."""
    from ..analysis.width_sweep import AXES

    summary = sweep.summary()
    kinds = [("final", "after training", BLUE, "-", "o")]
    if sweep.matched_loss is not None:
        kinds.append(("matched", f"when the loss first was {sweep.matched_loss:g}", VERMILION, "--", "s"))
    with new_figure(3.3 * len(sweep.axes) + 0.8, 6.2) as figure:
        panels = figure.subplots(2, len(sweep.axes), squeeze=False, sharey="row", sharex="col")
        for column, (axis, values) in enumerate(sweep.axes.items()):
            at = list(range(len(values)))
            for row, measure in enumerate(("width", "relative")):
                axes = panels[row, column]
                for kind, label, colour, dash, marker in kinds:
                    for cell in sweep.cells:
                        value = cell.measures()[f"{kind}_{measure}"]
                        if cell.axis == axis and value is not None and math.isfinite(value):
                            axes.plot(values.index(cell.value), value, marker, color=colour, alpha=0.3, markersize=4)
                    means = [r[f"{kind}_{measure}"] for r in summary if r["axis"] == axis]
                    axes.plot(
                        at,
                        [math.nan if mean is None else mean for mean in means],
                        dash,
                        marker=marker,
                        color=colour,
                        label=label,
                    )
                axes.set_xlim(-0.4, len(values) - 0.6)
            panels[1, column].set_xticks(at, [plain_number(value) for value in values])
            panels[1, column].set_xlabel(AXES[axis])
        for row, label in enumerate(("radial width", "width / norm of the parameters")):
            # The rows share their axis: its end is known only now.
            panels[row, 0].set_ylim(0, 1.1 * max(axes.dataLim.y1 for axes in panels[row]))
            panels[row, 0].set_ylabel(label)
        panels[0, 0].legend(frameon=False, fontsize=8)
        _say(figure, sweep.law)
        rows = [cell.row() for cell in sweep.cells]
        return save_figure(figure, folder, stem, list(rows[0]), [list(row.values()) for row in rows])


def draw_subspace(
    results: dict[str, Any], folder: str | os.PathLike[str], stem: str = "subspace", note: str = ""
) -> Path:
    """Accuracy (or loss) against the dimension of the random subspace. Returns the PNG's path.

    Args:
        results: label -> IntrinsicDimension; the labels share one figure.
    """
    with new_figure(7.5, 4.6) as figure:
        axes = figure.subplots()
        rows: list[list[Any]] = []
        for number, (label, found) in enumerate(results.items()):
            colour = COLOURS[number % len(COLOURS)]
            summary = found.summary()
            x, y = [row["dimension"] for row in summary], [row[found.measure] for row in summary]
            runs = [(run.dimension, getattr(run, found.measure)) for run in found.runs]
            known = [(d, v) for d, v in runs if v is not None]
            axes.plot([d for d, _ in known], [v for _, v in known], "o", color=colour, alpha=0.35, markersize=4)
            axes.plot(x, [math.nan if v is None else v for v in y], "-", color=colour, label=label)
            axes.axhline(found.level, color=colour, linestyle=":", linewidth=1.2, label=f"level {found.level:.4g}")
            if found.dimension is not None:
                axes.axvline(found.dimension, color=colour, linestyle="--", linewidth=1, label=f"d = {found.dimension}")
            rows += [
                [label, run.dimension, run.seed, run.loss, run.train_accuracy, run.test_accuracy, run.distance]
                for run in found.runs
            ]
        if all(row[1] > 0 for row in rows) and max(row[1] for row in rows) > 20 * min(row[1] for row in rows):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(plain_number)
        axes.set_xlabel("dimension of the random subspace")
        axes.set_ylabel(next(iter(results.values())).measure.replace("_", " "))
        axes.legend(frameon=False, fontsize=9)
        if note:
            _say(figure, note)
        columns = ["label", "dimension", "seed", "loss", "train_accuracy", "test_accuracy", "distance"]
        return save_figure(figure, folder, stem, columns, rows)


def draw_wedge_law(
    rows: Sequence[Mapping[str, Any]], size: int, wedge: int, folder: str | os.PathLike[str], stem: str = "wedge"
) -> Path:
    """Best distance to a linear wedge in random subspaces beside the law. Returns the PNG's path.

    Args:
        rows: dimension, law, root_mean_square, nearest, farthest (shares of the start's norm), and what else the CSV
            shall hold.
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
        axes.legend(frameon=False, fontsize=9)
        return save_figure(figure, folder, stem, list(rows[0]), [list(row.values()) for row in rows])


def _say(figure: Any, law: str) -> None:
    """What a width is, under the figure: no width without its threshold and the law of its directions."""
    import textwrap

    width = int(figure.get_size_inches()[0] * 15)
    figure.supxlabel("\n".join(textwrap.wrap(law, width)), fontsize=8, color=REMARK)


def _once(label: str, number: int) -> str | None:
    return label if number == 0 else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
