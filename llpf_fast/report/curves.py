"""Figure of curves between the same two networks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import COLOURS, DASHES, LIMIT, few_labels, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.compare_curves import Comparison

_COLUMNS = ("run", "arc", "train_loss", "test_loss", "test_accuracy")


def draw_curves(result: Comparison, folder: str | os.PathLike[str], stem: str = "curves") -> Path:
    """Training loss and test accuracy along every certified curve; peak against gradient steps where some were found
    with several budgets. The CSV holds every evaluated point. Returns the PNG's path."""
    methods = list(dict.fromkeys(row["method"] for row in result.rows))
    looks = {m: {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i]} for i, m in enumerate(methods)}
    accuracy = any(point["test_accuracy"] is not None for point in result.profiles)
    grown = any(row["budget"] in ("converged", "not converged") for row in result.rows)
    with new_figure(5.2 * (1 + accuracy + grown), 4.4) as figure:
        panels = list(figure.subplots(1, 1 + accuracy + grown, squeeze=False)[0])
        equal = [row for row in result.rows if row["budget"] in ("equal", "none")]
        _draw_loss(panels[0], result, equal, looks)
        if accuracy:
            _draw_accuracy(panels[1], result, equal, looks)
        if grown:
            _draw_growth(panels[-1], result, looks)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
        rows = [[point[name] for name in _COLUMNS] for point in result.profiles]
        return save_figure(figure, folder, stem, _COLUMNS, rows)


def _points(result: Comparison, run: str, key: str) -> tuple[list[float], list[float]]:
    found = [(p["arc"], p[key]) for p in result.profiles if p["run"] == run and p[key] is not None]
    return [arc for arc, _ in found], [value for _, value in found]


def _draw_loss(axes: Axes, result: Comparison, rows: list[dict[str, Any]], looks: dict[str, Any]) -> None:
    for row in rows:
        arcs, losses = _points(result, row["run"], "train_loss")
        axes.plot(arcs, losses, linewidth=1.6, label=row["method"], **looks[row["method"]])
    axes.axhline(result.about["threshold"], color=LIMIT, linewidth=0.8, label="threshold")
    axes.set_yscale("log")
    few_labels(axes.yaxis)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the curve's length")
    axes.set_ylabel("training loss")
    axes.set_title(f"equal budgets: {result.about['equal_budget_steps']:,} gradient steps", fontsize=10)


def _draw_accuracy(axes: Axes, result: Comparison, rows: list[dict[str, Any]], looks: dict[str, Any]) -> None:
    for row in rows:
        arcs, accuracies = _points(result, row["run"], "test_accuracy")
        axes.plot(arcs, [100 * value for value in accuracies], linewidth=1.6, **looks[row["method"]])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the curve's length")
    axes.set_ylabel("test accuracy (%)")


def _draw_growth(axes: Axes, result: Comparison, looks: dict[str, Any]) -> None:
    """The lowest screened peak of each method at each budget."""
    for method, look in looks.items():
        best: dict[int, tuple[float, int]] = {}
        for row in result.growth:
            if row["method"] == method and math.isfinite(row["screened_peak"]):
                found = (row["screened_peak"], row["gradient_steps"])
                best[row["budget"]] = min(best.get(row["budget"], found), found)
        if best:
            peaks, steps = zip(*(best[budget] for budget in sorted(best)), strict=True)
            axes.plot(steps, peaks, marker="o", markersize=4, **look)
    axes.axhline(result.about["threshold"], color=LIMIT, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        few_labels(axis)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("peak training loss (screened)")
    axes.set_title("larger budgets", fontsize=10)
