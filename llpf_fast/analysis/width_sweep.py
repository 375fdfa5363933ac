"""Radial widths of networks trained with different settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..correct import Correction
from ..errors import LLPFError, unknown_name
from ..flat import FlatParameters
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..path.state import detached, state_digest
from ..types import ProgressCallback
from .measures import Rank, rank_correlation
from .problem import Problem
from .widths import PointWidth, WidthSettings, measure_width

#: Evaluations an epoch of whether the loss to be matched is reached.
_EVALUATIONS = 5
_FINAL, _MATCHED = "final|", "matched|"


@dataclass(frozen=True)
class Training:
    """One network's training: SGD over ``epochs`` times as many batches as cover the training set.

    The number of steps is rounded up to a whole number of evaluations, a fifth of an epoch apart. Batches are
    drawn with replacement, from a counter (``batches.sampling``). ``width`` is the network's, where its factory
    takes one.
    """

    lr: float = 0.05
    batch_size: int = 64
    weight_decay: float = 0.0
    width: int | None = None
    momentum: float = 0.9
    epochs: int = 10
    seed: int = 0

    def validate(self) -> None:
        for name in ("lr", "batch_size", "epochs", *(["width"] if self.width is not None else [])):
            if not 0 < getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "momentum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def changed(self, name: str, value: float) -> Training:
        """With another value of one axis (``batch_size`` and ``width`` are whole numbers)."""
        values: dict[str, Any] = {name: int(value) if name in ("batch_size", "width") else value}
        return replace(self, **values)


@dataclass(frozen=True)
class Trained:
    """The network after training, and as it was when its loss first was at most the one to be matched (or None)."""

    final: dict[str, Tensor]
    matched: dict[str, Tensor] | None


def train_network(
    problem: Problem,
    build: Callable[[], nn.Module],
    training: Training,
    *,
    matched_loss: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Trained:
    """Train ``build()`` (its values drawn from ``training.seed``) on all training samples of ``problem``.

    The loss to be matched is evaluated on ``problem.samples("train")`` 5 times an epoch. The problem's cache has
    networks of the same data, architecture, initial values and settings.

    Raises:
        LLPFError: training that diverges; settings that cannot work.
    """
    training.validate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        module = unwrapped(build()).to(problem.device)
    initial = {name: detached(value) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    train = lambda: _train(problem, module, training, matched_loss, progress)
    key: dict[str, Any] = {
        "what": "width sweep",
        "initial": state_digest(initial),
        "training": asdict(training),
        "evaluations": [_EVALUATIONS, matched_loss, problem.identity("train")],
    }
    states = problem.cached_training(key, train)
    return Trained(_part(states, _FINAL), _part(states, _MATCHED) or None)


def _part(states: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}


def _train(
    problem: Problem,
    module: nn.Module,
    training: Training,
    matched_loss: float | None,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Tensor]:
    flat = FlatParameters(copied(module))
    an_epoch = problem.batches_per_epoch(training.batch_size)
    stride = max(an_epoch // _EVALUATIONS, 1)
    intervals = math.ceil(training.epochs * an_epoch / stride)
    correction = Correction(
        flat,
        problem.loss_fn,
        problem.batches(training.batch_size, seed=training.seed),
        threshold=-math.inf,  # never met: every interval has its full length
        window=stride,
        max_steps=stride,
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    evaluate = problem.evaluator("train")
    matched: dict[str, Tensor] | None = None
    for number in range(intervals):
        corrected = correction.run(number * stride, continued=True)
        if matched_loss is not None and matched is None:
            state = flat.state_dict()
            matched = state if evaluate(state).loss <= matched_loss else None
        if progress is not None:
            progress(number + 1, intervals, f"training  loss {corrected.loss:.4f}")
    final = {_FINAL + name: value for name, value in flat.state_dict().items()}
    return {**final, **{_MATCHED + name: value for name, value in (matched or {}).items()}}


#: Axes of a sweep -> their names in figures.
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


@dataclass(frozen=True)
class Cell:
    """One trained network: the value of the axis that was varied, and its widths.

    ``final`` or ``matched`` is None where the network diverged, has a loss above the threshold, or did not reach the
    loss to be matched; ``remark`` is the reason.
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
        values: dict[str, float | None] = {}
        for name, width in (("final", self.final), ("matched", self.matched)):
            values[f"{name}_width"] = None if width is None else width.median
            values[f"{name}_relative"] = None if width is None or not width.norm else width.median / width.norm
        return values

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"axis": self.axis, "value": self.value, "seed": self.seed, **self.measures()}
        for name, width in (("final", self.final), ("matched", self.matched)):
            row[f"{name}_loss"] = None if width is None else width.loss
            row[f"{name}_norm"] = None if width is None else width.norm
            row[f"{name}_open_rays"] = None if width is None else sum(math.isinf(r) for r in width.radii)
        return {**row, "test_accuracy": self.test_accuracy, "remark": self.remark}


@dataclass(frozen=True)
class WidthSweep:
    """All cells, one axis at a time about ``base``; ``law``: threshold and directions in words."""

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
    progress: ProgressCallback | None = None,
) -> WidthSweep:
    """Train a network for each value of each axis (the others as in ``base``) and seed, and measure its radial width.

    Equal trainings, such as the base itself on several axes, are done once. Random directions are the same for all
    networks of one width.

    Args:
        problem_of: network width (None: the default) -> problem; called once a width.
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

                def report(done: int, of: int, text: str, name: str = name) -> None:
                    if progress is not None:
                        progress(len(cells), total, f"{name}: {text} ({done}/{of})")

                if training not in measured:
                    measured[training] = _cell(
                        problems[training.width], build, training, settings, matched_loss, report
                    )
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
    progress: ProgressCallback,
) -> Cell:
    try:
        trained = train_network(
            problem, lambda: build(training.width), training, matched_loss=matched_loss, progress=progress
        )
    except LLPFError as error:
        if "training loss became" not in str(error):
            raise
        return Cell("", 0.0, training.seed, None, None, None, "diverged")
    # The network's stored statistics are wrong away from it, where the BatchNorm layers get other values.
    evaluate = problem.evaluator("train", statistics=problem.statistics[-1])
    accuracy = None if problem.test is None else problem.evaluator("test")(trained.final).accuracy
    widths: dict[str, PointWidth | None] = {"final": None, "matched": None}
    remarks = []
    for name, state in (("final", trained.final), ("matched", trained.matched)):
        if state is None:
            if matched_loss is not None:
                remarks.append(f"loss never reached {matched_loss:g}")
            continue
        loss = evaluate(state).loss
        if not settings.relative and not loss <= settings.threshold:
            remarks.append(f"{name} loss {loss:.3g} is above the threshold")
            continue
        rays = iter(range(1, settings.directions + 1))
        after = lambda name=name, rays=rays: progress(next(rays), settings.directions, f"width {name}")
        widths[name] = measure_width(
            problem.networks([state], fewest=1), state, evaluate, settings, name=name, after_ray=after
        )
    return Cell("", 0.0, training.seed, widths["final"], widths["matched"], accuracy, "; ".join(remarks))
