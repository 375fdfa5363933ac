"""``SampleChoice``: which samples a certificate looks at, and what their losses say about the loss of all."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LLPFError

#: Units in the stratum of the hardest, and in the next; each further stratum has twice as many.
SMALLEST_STRATUM = 500
#: Random units of each stratum but the hardest: of 60,000 units 4,000 are chosen. With 1,000 of one stratum beside the
#: hardest 3,000, the 5 standard errors were 0.019 of LeNet5's loss of 0.089 on its training images; so they are 0.007.
DRAWN = 500
#: Standard errors of the random units' total that are added.
STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class SampleChoice:
    """The chosen units (samples, or batches of a loader) and the estimate of the whole set's loss from theirs (ours).

    The units are put in the order of their losses at a few points, and cut into strata: H, the hardest, all of which
    are chosen; and strata of M_h units each, of which R_h are m_h random ones. With the numerators x of the chosen
    units, and D the sum of all denominators, the loss of the set is estimated by

        T(x) = (sum over H of x + sum over h of M_h/m_h * (sum over R_h of x) + 5 e(x)) / D,
        e(x) = sqrt(sum over h of M_h^2 (1/m_h - 1/M_h) s_h(x)^2),

    s_h(x) the standard deviation (correction 1) over R_h, so e the standard error of the random units' total (Cochran,
    Sampling Techniques, 1977, eq. 5.12). Without random units T(x) is the loss of the set, and nothing is estimated.

    *Bounds may stand for losses.* On a fixed piece of the path each of the set's units has an upper bound u(t) of its
    numerator; so T of the chosen units' bounds estimates, with the same 5 standard errors, a total that is not below
    that of the losses. e need not grow with its arguments for that.

    *Both ends of a piece close it.* Let u(t) = (1 - t) a + t b, the chords of the units' bounds. The sums are affine
    in t. e(u) is the norm of an affine map of u, that of the units' weighted differences from their stratum's mean, so
    convex in t. T(u(t)) is then convex, and at most (1 - t) T(a) + t T(b): if T(a) and T(b) are at most the threshold,
    so is T(u(t)) for every t.

    The statement is statistical: it assumes that the random units were drawn after the path was fixed, and that their
    total is close to normal. Rare huge losses of units that were easy where the order was made break the second
    assumption: of 60 units of loss 100 among the easiest 28,000, which raise the mean of 60,000 by 0.1, 500 random ones
    miss all in 34 % of draws.

    Attributes:
        units: int64 ``[n]``: the hardest, then the random ones of each stratum, ascending in each.
        hardest: how many of ``units`` are of the hardest stratum.
        others: the number of units outside this stratum.
        denominator: D.
        seed: of the random draw; None: nothing was drawn.
        strata: (M_h, m_h) of all strata but the hardest; empty: one stratum.
    """

    units: Tensor
    hardest: int
    others: int
    denominator: float
    seed: int | None
    strata: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    @property
    def complete(self) -> bool:
        """Whether all units are chosen."""
        return self.others == len(self.units) - self.hardest

    @property
    def weights(self) -> Tensor:
        """Float64 ``[n]``: what one more in a unit's numerator adds to the estimate, the standard error left aside."""
        factors = [1.0] * self.hardest
        for size, drawn in self._strata:
            factors += [size / drawn] * drawn
        return torch.tensor(factors, dtype=torch.float64) / self.denominator

    @property
    def _strata(self) -> tuple[tuple[int, int], ...]:
        drawn = len(self.units) - self.hardest
        return self.strata or (((self.others, drawn),) if drawn else ())

    def upper(self, numerators: Tensor) -> float:
        """T of ``numerators`` (float64 ``[n]``, in the order of ``units``), rounded up; infinite where one is not
        finite."""
        return self._estimate(numerators, STANDARD_ERRORS, outward=1.0)

    def lower(self, numerators: Tensor) -> float:
        """The same with 5 standard errors less, rounded down: where it is above the threshold, so is the loss.

        Infinite where a numerator is not finite: then the loss of the set is not finite either.
        """
        return self._estimate(numerators, -STANDARD_ERRORS, outward=-1.0)

    def _estimate(self, numerators: Tensor, errors: float, *, outward: float) -> float:
        hard, *parts = numerators.split([self.hardest, *(drawn for _, drawn in self._strata)])
        total, absolute, variance = float(hard.sum()), float(hard.abs().sum()), 0.0
        for (size, drawn), part in zip(self._strata, parts, strict=True):
            total += size / drawn * float(part.sum())
            absolute += size / drawn * float(part.abs().sum())
            if drawn < size:
                variance += size**2 * (1 / drawn - 1 / size) * float(part.var(correction=1))
        error = errors * math.sqrt(variance) if math.isfinite(variance) else math.inf
        # A float64 sum of n terms is off by at most n 2^-53 of the sum of their sizes (n 2^-53 << 1), in any order; so
        # is D. Deviations from a rounded mean have a larger square sum than those from the mean. Twice that covers the
        # few operations left.
        slack = (numerators.numel() + self.others + 64) * 2.0**-52 * (absolute + abs(error))
        value = (total + error + outward * slack) / self.denominator
        return value if math.isfinite(value) else math.inf


def all_units(denominators: Tensor) -> SampleChoice:
    """Every unit: the estimate is the loss of the set. ``denominators``: float64 ``[units]``."""
    units = torch.arange(len(denominators))
    return SampleChoice(units, len(units), 0, _total(denominators), None)


def choose_units(
    hardness: Tensor, denominators: Tensor, *, drawn: int = DRAWN, seed: int | None = None
) -> SampleChoice:
    """The 500 hardest units, and ``drawn`` random ones of each further stratum: 500, 1,000, 2,000, ... units.

    Where that is more than half of all, all are chosen: a proof is worth twice the work.

    Args:
        hardness: float64 ``[units]``, such as the largest numerator at a few waypoints; NaN is hardest.
        denominators: float64 ``[units]``.
        drawn: at least 2. A stratum of at most as many is chosen whole.
        seed: of the draw; None: from the operating system, so that no path can be made for the draw.

    Raises:
        LLPFError: ``drawn`` is below 2.
    """
    if drawn < 2:
        raise LLPFError(f"drawn must be at least 2, got {drawn}: one unit has no standard error")
    seed = secrets.randbits(63) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    order = hardness.nan_to_num(nan=math.inf, posinf=math.inf).argsort(descending=True, stable=True)
    hard, rest = order[:SMALLEST_STRATUM], order[SMALLEST_STRATUM:]
    chosen, strata, size = [hard.sort().values], [], SMALLEST_STRATUM
    while len(rest):
        # The last stratum has up to four times as many as the one before.
        size = len(rest) if len(rest) < 2 * size else size
        some = torch.randperm(size, generator=generator)[:drawn]
        chosen.append(rest[some].sort().values)
        strata.append((size, len(some)))
        rest, size = rest[size:], 2 * size
    units = torch.cat(chosen)
    if 2 * len(units) > len(order):
        return all_units(denominators)
    others = len(order) - len(hard)
    return SampleChoice(units, len(hard), others, _total(denominators), seed, strata=tuple(strata))


def _total(denominators: Tensor) -> float:
    total = float(denominators.sum())
    if not (total > 0 and math.isfinite(total)):
        raise LLPFError(f"the denominators of the loss sum to {total}: the loss of the set is not defined")
    return total
