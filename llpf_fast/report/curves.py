"""The figure of curves that several methods found between the same two networks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import COLOURS, DASHES, LIMIT, label_decades, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.compare_curves import Comparison

_COLUMNS = ("run", "arc", "train_loss", "test_loss", "test_accuracy")


def draw_curves(result: Comparison, folder: str | os.PathLike[str], stem: str = "curves") -> Path:
    """Draw training loss and test accuracy along every certified curve; returns the PNG's path.

    Where methods ran with several budgets, a further panel shows each method's lowest peak against gradient steps. The
    CSV holds every evaluated point.
    """
    methods = list(dict.fromkeys(row["method"] for row in result.rows))
    styles = {m: {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i]} for i, m in enumerate(methods)}
    has_accuracy = any(point["test_accuracy"] is not None for point in result.profiles)
    has_budgets = any(row["budget"] not in ("equal", "none") for row in result.rows)
    with new_figure(5.2 * (1 + has_accuracy + has_budgets), 4.4) as figure:
        panels = list(figure.subplots(1, 1 + has_accuracy + has_budgets, squeeze=False)[0])
        equal = [row for row in result.rows if row["budget"] in ("equal", "none")]
        _draw_loss(panels[0], result, equal, styles)
        if has_accuracy:
            _draw_accuracy(panels[1], result, equal, styles)
        if has_budgets:
            _draw_budgets(panels[-1], result, styles)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        rows = [[point[name] for name in _COLUMNS] for point in result.profiles]
        return save_figure(figure, folder, stem, _COLUMNS, rows)


def _points(result: Comparison, run: str, key: str) -> tuple[list[float], list[float]]:
    """Arcs and values of the run's points that have ``key``."""
    points = [point for point in result.profiles if point["run"] == run and point[key] is not None]
    return [point["arc"] for point in points], [point[key] for point in points]


def _draw_loss(axes: Axes, result: Comparison, rows: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    for row in rows:
        arcs, losses = _points(result, row["run"], "train_loss")
        axes.plot(arcs, losses, linewidth=1.6, label=row["method"], **styles[row["method"]])
    axes.axhline(result.about["threshold"], color=LIMIT, linewidth=0.8, label="threshold")
    axes.set_yscale("log")
    label_decades(axes.yaxis)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the curve's length")
    axes.set_ylabel("training loss")
    axes.set_title(f"equal budgets: {result.about['equal_budget_steps']:,} gradient steps", fontsize=10)


def _draw_accuracy(axes: Axes, result: Comparison, rows: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    for row in rows:
        arcs, accuracies = _points(result, row["run"], "test_accuracy")
        axes.plot(arcs, [100 * value for value in accuracies], linewidth=1.6, **styles[row["method"]])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the curve's length")
    axes.set_ylabel("test accuracy (%)")


def _draw_budgets(axes: Axes, result: Comparison, styles: dict[str, Any]) -> None:
    """Draw the lowest screened peak of each method at each budget."""
    for method, style in styles.items():
        best: dict[int, tuple[float, int]] = {}
        for row in result.growth:
            if row["method"] == method and math.isfinite(row["screened_peak"]):
                peak = (row["screened_peak"], row["gradient_steps"])
                best[row["budget"]] = min(best.get(row["budget"], peak), peak)
        if best:
            peaks, steps = zip(*(best[budget] for budget in sorted(best)), strict=True)
            axes.plot(steps, peaks, marker="o", markersize=4, **style)
    axes.axhline(result.about["threshold"], color=LIMIT, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        label_decades(axis)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("peak training loss (screened)")
    axes.set_title("larger budgets", fontsize=10)
