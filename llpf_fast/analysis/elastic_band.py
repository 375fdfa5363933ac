"""Nudged elastic bands with pivots put where the loss bulges (AutoNEB; Draxler et al., arXiv 1803.00885)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LLPFError
from ..find.curve import redistribute
from ..types import ProgressCallback
from .curve import Gradient

#: vector [P] -> loss on a fixed set.
Measure = Callable[[Tensor], float]


@dataclass(frozen=True)
class BandSettings:
    """How a band is relaxed: ``steps`` gradient steps in all, an equal share for each cycle.

    One gradient step is one pivot on one batch. Before the first cycle ``first`` pivots lie equally spaced on the
    straight line; before every other, the ``most`` segments whose inside is most above the line between their
    endpoints, by more than ``bulge`` of the band's whole range of losses, get one pivot each, at the highest of
    ``inside`` points. The authors' schedule is 14 cycles of 1,000 and 2,000 rounds at 0.1, 0.01 and 0.001; ``rates``
    has the same three levels.
    """

    steps: int
    lr: float = 0.1
    rates: tuple[float, ...] = (1.0, 1.0, 1.0, 0.1, 0.1, 0.01)
    momentum: float = 0.9
    first: int = 3
    most: int = 2
    bulge: float = 0.1
    inside: int = 9

    def __post_init__(self) -> None:
        if self.steps < self.first:
            raise LLPFError(f"a band of {self.first} pivots needs at least {self.first} gradient steps")
        if self.first < 1 or not self.rates:
            raise LLPFError("a band needs at least 1 pivot and 1 cycle")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise LLPFError(f"the band's learning rate must be a positive number, got {self.lr}")


@dataclass(frozen=True)
class Band:
    """``pivots [n, P]``, endpoints included; ``measured`` counts evaluations on the fixed set."""

    pivots: Tensor
    steps: int
    measured: int


def auto_neb(
    start: Tensor,
    end: Tensor,
    gradient: Gradient,
    measure: Measure,
    settings: BandSettings,
    progress: ProgressCallback | None = None,
) -> Band:
    """A minimum energy path from ``start`` to ``end``, both ``[P]``, which are unchanged.

    Each round: pivots are put back to their shares of the band's length (springs of infinite stiffness, so no
    spring force), every inner pivot's gradient is taken on one and the same batch, loses its part along the band, and
    SGD moves the pivots.

    Raises:
        LLPFError: the loss stops being finite.
    """
    pivots = torch.stack([start.lerp(end, i / (settings.first + 1)) for i in range(settings.first + 2)])
    pivots[0], pivots[-1] = start, end
    shares = torch.full((settings.first + 1,), 1 / (settings.first + 1), dtype=torch.float64)
    endpoint_losses = measure(start), measure(end)
    measured, steps, round_ = 2, 0, 0
    for cycle, rate in enumerate(settings.rates):
        if cycle:
            losses = _losses(pivots, settings.inside, measure)
            measured += len(losses)
            pivots, shares = insert(pivots, shares, losses, settings)
        velocity = torch.zeros_like(pivots)
        share = settings.steps * (cycle + 1) // len(settings.rates)
        while steps + len(pivots) - 2 <= share:
            (pivots,) = redistribute(pivots, shares)
            losses, slopes = _gradients(pivots, endpoint_losses, gradient, round_)
            round_, steps = round_ + 1, steps + len(pivots) - 2
            if not all(map(math.isfinite, losses[1:-1])):
                raise LLPFError(f"the band diverged after {steps} steps; lower its learning rate ({settings.lr})")
            velocity.mul_(settings.momentum).add_(across(pivots, losses, slopes))
            pivots = pivots.sub(velocity, alpha=rate * settings.lr)
            if progress is not None:
                progress(steps, settings.steps, f"{len(pivots) - 2} pivots  loss {max(losses[1:-1]):.4f}")
    return Band(redistribute(pivots, shares)[0], steps, measured)


def across(pivots: Tensor, losses: Sequence[float], slopes: Tensor) -> Tensor:
    """The gradients ``slopes [n, P]`` less their parts along the band: what moves it without sliding along it."""
    result = slopes.clone()
    for i in range(1, len(pivots) - 1):
        along = tangent(pivots, losses, i)
        result[i].sub_(along, alpha=float(slopes[i] @ along))
    return result


def tangent(pivots: Tensor, losses: Sequence[float], i: int) -> Tensor:
    """The unit direction of the band at inner pivot ``i`` (Henkelman and Jonsson 2000, eqs. 8 to 11).

    Toward the neighbour with the higher loss; at an extremum both directions, weighted by the differences of loss, so
    that it does not flip from round to round. ``losses`` has one value a pivot.
    """
    back, ahead = pivots[i] - pivots[i - 1], pivots[i + 1] - pivots[i]
    low, here, high = losses[i - 1 : i + 2]
    if not (math.isfinite(low) and math.isfinite(high)):
        return _unit(pivots[i + 1] - pivots[i - 1])
    if low < here < high:
        return _unit(ahead)
    if low > here > high:
        return _unit(back)
    most, least = max(abs(high - here), abs(low - here)), min(abs(high - here), abs(low - here))
    toward, away = (most, least) if high > low else (least, most)
    if most == 0:
        return _unit(pivots[i + 1] - pivots[i - 1])
    return _unit(toward * _unit(ahead) + away * _unit(back))


def insert(pivots: Tensor, shares: Tensor, losses: Sequence[float], settings: BandSettings) -> tuple[Tensor, Tensor]:
    """Pivots and shares with one more where the loss inside a segment is most above the line between its endpoints.

    ``losses`` are those of every pivot and of ``settings.inside`` equally spaced points inside every segment.
    """
    stride = settings.inside + 1
    finite = [loss for loss in losses if math.isfinite(loss)]
    spread = max(finite) - min(finite) if finite else 0.0
    excesses = []
    for segment in range(len(pivots) - 1):
        a, b = losses[segment * stride], losses[(segment + 1) * stride]
        for j in range(1, stride):
            value, t = losses[segment * stride + j], j / stride
            # A loss that is not finite counts as the highest.
            excess = value - (a + t * (b - a)) if math.isfinite(value - a - b) else math.inf
            excesses.append((excess, segment, t))
    best: dict[int, tuple[float, float]] = {}
    for excess, segment, t in excesses:
        if excess > best.get(segment, (settings.bulge * spread, 0.0))[0]:
            best[segment] = (excess, t)
    chosen = sorted(sorted(best, key=lambda segment: -best[segment][0])[: settings.most], reverse=True)
    for segment in chosen:
        t = best[segment][1]
        new = pivots[segment].lerp(pivots[segment + 1], t)
        pivots = torch.cat([pivots[: segment + 1], new.unsqueeze(0), pivots[segment + 1 :]])
        parts = torch.tensor([t, 1 - t], dtype=shares.dtype) * shares[segment]
        shares = torch.cat([shares[:segment], parts, shares[segment + 1 :]])
    return pivots, shares


def _gradients(
    pivots: Tensor, endpoint_losses: tuple[float, float], gradient: Gradient, round_: int
) -> tuple[list[float], Tensor]:
    """Losses and gradients ``[n, P]``; at the endpoints the losses on the fixed set, and no gradient."""
    slopes = torch.zeros_like(pivots)
    losses = [endpoint_losses[0], *[math.nan] * (len(pivots) - 2), endpoint_losses[1]]
    for i in range(1, len(pivots) - 1):
        losses[i], slopes[i] = gradient(pivots[i], round_)
    return losses, slopes


def _losses(pivots: Tensor, inside: int, measure: Measure) -> list[float]:
    """Of every pivot and of ``inside`` equally spaced points inside every segment."""
    stride = inside + 1
    count = (len(pivots) - 1) * stride
    return [
        measure(pivots[min(i // stride, len(pivots) - 2)].lerp(pivots[min(i // stride, len(pivots) - 2) + 1], t))
        for i in range(count + 1)
        for t in [1.0 if i == count else i % stride / stride]
    ]


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(1e-30)
