"""How the radial width depends on learning rate, batch size, weight decay and the network's own width."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import LLPFError
from ...wording import unknown_name
from ..problem import Problem
from ..rank import Rank, rank_correlation
from .measure import PointWidth, WidthSettings, measure_width
from .training import Training, train_network

#: Axes of a sweep: what is varied, and how figures call it.
AXES: dict[str, str] = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "width": "network width",
}
#: The measured quantities: of the network after training, and at matched loss.
MEASURES: dict[str, str] = {
    "final_width": "after training",
    "final_relative": "after training, relative to the norm",
    "matched_width": "at matched loss",
    "matched_relative": "at matched loss, relative to the norm",
}
#: (cells done, cells in all, what is being done)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Cell:
    """One trained network: the value of the axis that was varied, and its widths.

    ``final`` or ``matched`` is None where the network diverged, has a loss above the threshold, or never came down to
    the loss to be matched; ``remark`` says which.
    """

    axis: str
    value: float
    seed: int
    final: PointWidth | None
    matched: PointWidth | None
    test_accuracy: float | None
    remark: str = ""

    def measures(self) -> dict[str, float | None]:
        """The four MEASURES (medians over directions)."""
        found: dict[str, float | None] = {}
        for name, width in (("final", self.final), ("matched", self.matched)):
            found[f"{name}_width"] = None if width is None else width.median
            found[f"{name}_relative"] = None if width is None or not width.norm else width.median / width.norm
        return found

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"axis": self.axis, "value": self.value, "seed": self.seed, **self.measures()}
        for name, width in (("final", self.final), ("matched", self.matched)):
            row[f"{name}_loss"] = None if width is None else width.loss
            row[f"{name}_norm"] = None if width is None else width.norm
            row[f"{name}_open_rays"] = None if width is None else sum(math.isinf(r) for r in width.radii)
        return {**row, "test_accuracy": self.test_accuracy, "remark": self.remark}


@dataclass(frozen=True)
class WidthSweep:
    """All cells, one axis at a time about ``base``; ``law`` says what a width here is."""

    base: Training
    axes: dict[str, list[float]]
    cells: list[Cell]
    law: str
    matched_loss: float | None

    def summary(self) -> list[dict[str, Any]]:
        """A row an axis and value: mean over the seeds of each measure, and their number."""
        rows = []
        for axis, values in self.axes.items():
            for value in values:
                cells = [cell for cell in self.cells if cell.axis == axis and cell.value == value]
                row: dict[str, Any] = {"axis": axis, "value": value, "networks": len(cells)}
                for measure in MEASURES:
                    known = [m for cell in cells if (m := cell.measures()[measure]) is not None and math.isfinite(m)]
                    row[measure] = statistics.fmean(known) if known else None
                losses = [cell.final.loss for cell in cells if cell.final is not None]
                row["final_loss"] = statistics.fmean(losses) if losses else None
                norms = [cell.final.norm for cell in cells if cell.final is not None]
                row["final_norm"] = statistics.fmean(norms) if norms else None
                rows.append({**row, "without_result": sum(cell.final is None for cell in cells)})
        return rows

    def trends(self) -> list[dict[str, Any]]:
        """A row an axis and measure: Spearman's correlation of the axis' value with the width over all networks."""
        rows = []
        for axis in self.axes:
            for measure in MEASURES:
                pairs = [
                    (cell.value, m)
                    for cell in self.cells
                    if cell.axis == axis and (m := cell.measures()[measure]) is not None
                ]
                rank = rank_correlation([p for p, _ in pairs], [m for _, m in pairs]) if pairs else Rank(None, None, 0)
                rows.append({"axis": axis, "measure": measure, "rho": rank.rho, "networks": rank.count})
        return rows


def width_sweep(
    problem_of: Callable[[int | None], Problem],
    build: Callable[[int | None], nn.Module],
    axes: Mapping[str, Sequence[float]],
    base: Training,
    settings: WidthSettings,
    *,
    seeds: Sequence[int] = (0,),
    matched_loss: float | None = None,
    progress: Progress | None = None,
) -> WidthSweep:
    """Train a network for each value of each axis (the others as in ``base``) and seed, and measure its radial width.

    Equal trainings, such as the base itself on several axes, are done once. Random directions are the same for all
    networks of one width.

    Args:
        problem_of: network width (None: the network's own) -> problem; asked once a width.
        build: network width -> a freshly initialised network, drawn from torch's global generator.
        axes: of :data:`AXES`, each with at least one value.
        matched_loss: also measure every network as it was when its training loss first was at most this.

    Raises:
        LLPFError: no axes, unknown ones, values that cannot work; no seeds.
    """
    if not axes or not any(axes.values()):
        raise LLPFError("a sweep needs at least one axis with values: lr, batch_size, weight_decay or width")
    for axis, values in axes.items():
        if axis not in AXES:
            raise LLPFError(unknown_name("axis", axis, AXES))
        if not values:
            raise LLPFError(f"axis {axis} has no values")
        for value in values:
            base.changed(axis, value).validate()
    if not seeds:
        raise LLPFError("a sweep needs at least one seed")
    settings.validate()
    ordered = {axis: sorted({*values}) for axis, values in axes.items()}
    problems: dict[int | None, Problem] = {}
    measured: dict[Training, Cell] = {}
    cells: list[Cell] = []
    total = sum(map(len, ordered.values())) * len(seeds)
    for axis, values in ordered.items():
        for value in values:
            for seed in seeds:
                training = Training(**{**vars(base.changed(axis, value)), "seed": seed})
                if training.width not in problems:
                    problems[training.width] = problem_of(training.width)
                name = f"{AXES[axis]} {value:g}, seed {seed}"

                def tell(done: int, of: int, text: str, name: str = name) -> None:
                    if progress is not None:
                        progress(len(cells), total, f"{name}: {text} ({done}/{of})")

                if training not in measured:
                    measured[training] = _cell(problems[training.width], build, training, settings, matched_loss, tell)
                known = measured[training]
                cells.append(Cell(axis, value, seed, known.final, known.matched, known.test_accuracy, known.remark))
                if progress is not None:
                    progress(len(cells), total, name)
    return WidthSweep(base, ordered, cells, settings.in_words(), matched_loss)


def _cell(
    problem: Problem,
    build: Callable[[int | None], nn.Module],
    training: Training,
    settings: WidthSettings,
    matched_loss: float | None,
    progress: Progress,
) -> Cell:
    try:
        trained = train_network(
            problem, lambda: build(training.width), training, matched_loss=matched_loss, progress=progress
        )
    except LLPFError as error:
        if "training loss became" not in str(error):
            raise
        return Cell("", 0.0, training.seed, None, None, None, "diverged")
    # Statistics stored at the network are wrong away from it, where other values reach the BatchNorm layers.
    evaluate = problem.evaluator("train", statistics=problem.statistics[-1])
    accuracy = None if problem.test is None else problem.evaluator("test")(trained.final).accuracy
    found: dict[str, PointWidth | None] = {"final": None, "matched": None}
    remarks = []
    for name, state in (("final", trained.final), ("matched", trained.matched)):
        if state is None:
            if matched_loss is not None:
                remarks.append(f"loss never came down to {matched_loss:g}")
            continue
        own = evaluate(state).loss
        if not settings.above_own and not own <= settings.threshold:
            remarks.append(f"{name} loss {own:.3g} is above the threshold")
            continue
        rays = iter(range(1, settings.directions + 1))
        after = lambda name=name, rays=rays: progress(next(rays), settings.directions, f"width {name}")
        found[name] = measure_width(
            problem.networks([state], fewest=1), state, evaluate, settings, name=name, after_ray=after
        )
    return Cell("", 0.0, training.seed, found["final"], found["matched"], accuracy, "; ".join(remarks))
