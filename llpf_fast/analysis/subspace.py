"""Training in random subspaces: the intrinsic dimension of a network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..batches import compute_loss
from ..batches.sampling import round_key
from ..correct import Correction
from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import state_digest
from ..types import ProgressCallback
from .problem import Problem
from .vector_loss import seeded

#: Directions made at a time: 32 of LeNet5 are 8 MB.
_BLOCK = 32


class RandomBasis:
    """``dimension`` Gaussian directions of length 1, rows of M^T ``[d, N]`` (Li et al., arXiv 1804.08838).

    The first d rows of a larger basis of the same seed are the smaller one: subspaces are nested. Above ``memory``
    bytes the rows are generated at each use, block by block, with the same values (about 40 times slower on a CPU).

    Args:
        mask: ``[N]``: 1 where directions have components, 0 elsewhere (padding, frozen parameters); gives dtype and
            device.

    Raises:
        LLPFError: a dimension below 1, or above the number of components.
    """

    def __init__(self, mask: Tensor, dimension: int, seed: int, *, memory: int = 2**29) -> None:
        components = int(mask.count_nonzero())
        if not 1 <= dimension <= components:
            raise LLPFError(f"a subspace of {components} parameters has 1 to {components} dimensions, got {dimension}")
        self.dimension = dimension
        self._mask, self._seed = mask, seed
        self._stored: Tensor | None = None
        #: Whether the rows are in memory.
        self.is_stored = dimension * mask.numel() * mask.element_size() <= memory
        if self.is_stored:
            stored = mask.new_empty(dimension, mask.numel())
            for first, rows in self._blocks():
                stored[first : first + len(rows)] = rows
            self._stored = stored

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, rows ``[<= 32, N]``)."""
        for first in range(0, self.dimension, _BLOCK):
            generator = torch.Generator().manual_seed(round_key(self._seed, 1, first))
            rows = torch.randn(_BLOCK, self._mask.numel(), generator=generator, dtype=torch.float32)
            rows = rows[: self.dimension - first].to(self._mask) * self._mask
            yield first, rows / rows.norm(dim=1, keepdim=True)

    def combine(self, coordinates: Tensor) -> Tensor:
        """M z ``[N]`` for z ``[d]``."""
        if self._stored is not None:
            return coordinates @ self._stored
        total = torch.zeros_like(self._mask)
        for first, rows in self._blocks():
            total += coordinates[first : first + len(rows)] @ rows
        return total

    def coordinates(self, gradient: Tensor) -> Tensor:
        """M^T g ``[d]`` for g ``[N]``: the gradient in the subspace."""
        if self._stored is not None:
            return self._stored @ gradient
        return torch.cat([rows @ gradient for _, rows in self._blocks()])


_REPORT_EVERY = 50


@dataclass(frozen=True)
class SubspaceSettings:
    """How z is trained: ``steps`` of Adam or SGD with momentum 0.9, ``lr`` falling linearly to 0 over the last half."""

    steps: int = 2000
    lr: float = 0.03
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    memory: int = 2**29

    def validate(self) -> None:
        for name in ("steps", "lr", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.optimizer not in ("adam", "sgd"):
            raise LLPFError(f"the optimizer is adam or sgd, got {self.optimizer!r}")


def train_in_subspace(
    problem: Problem,
    start: Mapping[str, Tensor],
    dimension: int,
    settings: SubspaceSettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Tensor]:
    """Train from ``start`` in a random affine subspace of ``dimension`` dimensions through it; returns the state.

    theta = P0 + M z, z from 0; the gradient in z is M^T g. Buffers (BatchNorm statistics) are trained as always. The
    subspace follows from ``seed``, the batches from the seed of ``problem``.

    Raises:
        LLPFError: a dimension that does not exist; a loss that is not finite.
    """
    settings = settings or SubspaceSettings()
    settings.validate()
    flat = FlatParameters(problem.copy())
    flat.load(start)
    origin = flat.data.clone()
    # 0 in the buffer's padding and where parameters are frozen.
    mask = flat.flatten({name: torch.full_like(p, p.requires_grad) for name, p in flat.module.named_parameters()})
    basis = RandomBasis(mask, dimension, seed, memory=settings.memory)
    z = torch.zeros(dimension, dtype=origin.dtype, device=origin.device, requires_grad=True)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam([z], lr=settings.lr)
    else:
        optimizer = torch.optim.SGD([z], lr=settings.lr, momentum=0.9)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / settings.steps)))
    batches = problem.batches(settings.batch_size)
    flat.module.train()
    # Dropout draws from torch's generator.
    with seeded(problem.seed, problem.device):
        for step in range(settings.steps):
            flat.zero_grad()
            loss = compute_loss(flat.module, problem.loss_fn, *batches.batch(step))
            loss.backward()
            flat.ensure_gradients()
            z.grad = basis.coordinates(flat.grad)
            optimizer.step()
            rates.step()
            with torch.no_grad():
                flat.data.copy_(origin + basis.combine(z.detach()))
            if (step + 1) % _REPORT_EVERY == 0 or step + 1 == settings.steps:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise LLPFError(f"the training loss became {value} in {dimension} dimensions; try a smaller lr")
                if progress is not None:
                    progress(step + 1, settings.steps, f"loss {value:.4f}")
    return flat.state_dict()


_INTERVAL, _BASELINE_LR = 50, 1e-3


@dataclass(frozen=True)
class SubspaceRun:
    """One training in a subspace; ``distance`` from the start is the length of M z. NaN loss: it diverged."""

    dimension: int
    seed: int
    loss: float
    train_accuracy: float | None
    test_accuracy: float | None
    distance: float


@dataclass(frozen=True)
class IntrinsicDimension:
    """All runs, and the smallest dimension that suffices.

    ``measure`` is "test_accuracy", "train_accuracy" (to be at least ``level``) or "loss" (at most ``level``), the mean
    over the seeds. ``dimension`` is the smallest one tried such that it and every larger one tried reach the level;
    None where the largest does not. ``below`` is the largest smaller one tried.
    """

    runs: list[SubspaceRun]
    measure: str
    level: float
    baseline: float | None
    dimension: int | None
    below: int | None

    def in_words(self) -> str:
        """One line: the level, and the dimension that reaches it."""
        if self.measure == "loss":
            level = f"training loss at most {self.level:g}"
        else:
            level = f"{self.measure.replace('_', ' ')} at least {self.level:.4f}, of {self.baseline:.4f} unrestricted"
        if self.dimension is None:
            return f"{level}: not reached in up to {self.below} dimensions"
        between = f" (not in {self.below})" if self.below is not None else ""
        return f"{level}: reached in {self.dimension} dimensions{between}"

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file, without the single runs."""
        return {
            "intrinsic_dimension": self.dimension,
            "largest_tried_below": self.below,
            "measure": self.measure,
            "level": self.level,
            "baseline": self.baseline,
            "summary": self.summary(),
        }

    def summary(self) -> list[dict[str, Any]]:
        """A row a dimension: means over the seeds, share of the runs that reach the level."""
        rows = []
        for dimension in sorted({run.dimension for run in self.runs}):
            runs = [run for run in self.runs if run.dimension == dimension]
            values = [value for run in runs if (value := getattr(run, self.measure)) is not None]
            row: dict[str, Any] = {"dimension": dimension, "runs": len(runs)}
            for name in ("loss", "train_accuracy", "test_accuracy", "distance"):
                known = [value for run in runs if (value := getattr(run, name)) is not None]
                row[name] = statistics.fmean(known) if known else None
            row["success"] = sum(_reaches(self.measure, value, self.level) for value in values) / len(runs)
            rows.append(row)
        return rows


def intrinsic_dimension(
    problem: Problem,
    starts: Sequence[Mapping[str, Tensor]],
    dimensions: Sequence[int],
    settings: SubspaceSettings | None = None,
    *,
    baseline: float | None = None,
    share: float = 0.9,
    loss_level: float | None = None,
    progress: ProgressCallback | None = None,
) -> IntrinsicDimension:
    """Train in random subspaces of each of ``dimensions``, from each of ``starts`` (subspace i from start i).

    Li et al.'s d_int90 (arXiv 1804.08838): the smallest dimension whose accuracy is ``share`` of ``baseline``, the
    accuracy of unrestricted training. Accuracy is on the test set where there is one.

    Args:
        baseline: accuracy 0..1.
        loss_level: a training loss to reach, instead of an accuracy.

    Raises:
        LLPFError: no dimensions, none that exist; neither or both of ``baseline`` and ``loss_level``; no accuracy.
    """
    settings = settings or SubspaceSettings()
    if not dimensions or not starts:
        raise LLPFError("an intrinsic dimension needs dimensions to try and at least one network to start from")
    if (baseline is None) == (loss_level is None):
        raise LLPFError("name either the accuracy of unrestricted training (baseline) or a loss to reach")
    if baseline is not None and not (0 < baseline <= 1 and 0 < share <= 1):
        raise LLPFError(f"baseline and share must lie in (0, 1], got {baseline} and {share}")
    runs: list[SubspaceRun] = []
    total = len(dimensions) * len(starts)
    for dimension in sorted({*dimensions}):
        for seed, start in enumerate(starts):

            def report(done: int, of: int, text: str, dimension: int = dimension, seed: int = seed) -> None:
                if progress is not None:
                    progress(len(runs), total, f"dimension {dimension}, seed {seed}: step {done}/{of}  {text}")

            runs.append(_run(problem, start, dimension, settings, seed, report))
            if progress is not None:
                progress(len(runs), total, f"dimension {dimension}, seed {seed}  loss {runs[-1].loss:.4f}")
    if loss_level is not None:
        measure, level = "loss", loss_level
    else:
        measure = "test_accuracy" if problem.test is not None else "train_accuracy"
        assert baseline is not None
        level = share * baseline
        if runs[0].train_accuracy is None:
            raise LLPFError("the problem is no classification: name a loss to reach")
    return IntrinsicDimension(runs, measure, level, baseline, *_smallest(runs, measure, level))


def baseline_accuracy(
    problem: Problem,
    start: Mapping[str, Tensor],
    settings: SubspaceSettings,
    *,
    progress: ProgressCallback | None = None,
) -> float:
    """Accuracy after unrestricted training from ``start``: Adam, lr 0.001, as many steps and batches as a subspace.

    On the test set where there is one. LLPFError where the problem is no classification.
    """
    flat = FlatParameters(problem.copy())
    flat.load(start)
    correction = Correction(
        flat,
        problem.loss_fn,
        problem.batches(settings.batch_size),
        threshold=-math.inf,  # never met: every interval has its full length
        window=_INTERVAL,
        max_steps=_INTERVAL,
        lr=_BASELINE_LR,
        optimizer=torch.optim.Adam(flat.module.parameters(), lr=_BASELINE_LR),
    )
    intervals = math.ceil(settings.steps / _INTERVAL)
    for number in range(intervals):
        corrected = correction.run(number * _INTERVAL, continued=True)
        if progress is not None:
            progress(number + 1, intervals, f"unrestricted training  loss {corrected.loss:.4f}")
    accuracy = problem.evaluator("train" if problem.test is None else "test")(flat.state_dict()).accuracy
    if accuracy is None:
        raise LLPFError("the problem is no classification: name a loss to reach")
    return accuracy


def _run(
    problem: Problem,
    start: Mapping[str, Tensor],
    dimension: int,
    settings: SubspaceSettings,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> SubspaceRun:
    train = lambda: train_in_subspace(problem, start, dimension, settings, seed=seed, progress=progress)
    key = {
        "what": "subspace",
        "batches": problem.seed,
        "start": state_digest(start),
        "dimension": dimension,
        "seed": seed,
        "settings": {name: value for name, value in asdict(settings).items() if name != "memory"},
    }
    try:
        state = problem.cached_training(key, train)
    except LLPFError as error:
        if "training loss became" not in str(error):
            raise
        return SubspaceRun(dimension, seed, math.nan, None, None, math.nan)
    train_set = problem.evaluator("train")(state)
    test_set = None if problem.test is None else problem.evaluator("test")(state)
    names = [name for name, _ in problem.module.named_parameters()]
    moved = [(state[name].cpu().double() - start[name].cpu().double()).square().sum() for name in names]
    distance = float(torch.stack(moved).sum().sqrt())
    accuracy = None if test_set is None else test_set.accuracy
    return SubspaceRun(dimension, seed, train_set.loss, train_set.accuracy, accuracy, distance)


def _reaches(measure: str, value: float, level: float) -> bool:
    return value <= level if measure == "loss" else value >= level


def _smallest(runs: Sequence[SubspaceRun], measure: str, level: float) -> tuple[int | None, int | None]:
    """(smallest dimension from which on all reach the level, the next smaller one tried)."""
    tried = sorted({run.dimension for run in runs})
    smallest: int | None = None
    for dimension in reversed(tried):
        values = [getattr(run, measure) for run in runs if run.dimension == dimension]
        # A run that diverged reaches nothing.
        mean = math.nan if None in values else statistics.fmean(values)
        if not _reaches(measure, mean, level):
            return smallest, dimension
        smallest = dimension
    return smallest, None
