"""``SampleChoice``: which samples a certificate looks at, and what their losses say about the loss of all."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LLPFError

#: Share of the units in the stratum of the hardest (of LeNet5's training images they carry 80 % of the loss), and their
#: fewest.
HARDEST_SHARE = 0.05
FEWEST_HARDEST = 500
#: Random units beside them.
RANDOM_UNITS = 1_000
#: Standard errors of the random units' total that are added.
STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class SampleChoice:
    """The chosen units (samples, or batches of a loader) and the estimate of the whole set's loss from theirs (ours).

    With the numerators x of the chosen units, H of the hardest units (all of them are chosen), R of m random ones out
    of the M others, and D the sum of all denominators, the loss of the set is estimated by

        T(x) = (sum over H of x + M/m * sum over R of x + 5 e(x)) / D,    e(x) = M sqrt((1 - m/M) / m) * s(x),

    s(x) the standard deviation (correction 1) over R, so e the standard error of the random units' total (Cochran,
    Sampling Techniques, 1977, eq. 2.20). Without random units T(x) is the loss of the set, and nothing is estimated.

    *Bounds may stand for losses.* On a fixed piece of the path each of the set's units has an upper bound u(t) of its
    numerator; so T of the chosen units' bounds estimates, with the same 5 standard errors, a total that is not below
    that of the losses. s need not grow with its arguments for that.

    *Both ends of a piece close it.* Let u(t) = (1 - t) a + t b, the chords of the units' bounds. The sums are affine
    in t. s(u) is the norm of u less its mean over R, divided by sqrt(m - 1): a norm of an affine map of t, so convex.
    T(u(t)) is then convex, and at most (1 - t) T(a) + t T(b): if T(a) and T(b) are at most the threshold, so is
    T(u(t)) for every t.

    The statement is statistical: it assumes that the random units were drawn after the path was fixed, and that the
    sum of m of them is close to normal. Units outside the hardest stratum with rare huge losses break the second
    assumption: 60 of loss 100 among 60,000 raise the mean by 0.1, and 1,000 random units miss all of them in 37 % of
    draws.

    Attributes:
        units: int64 ``[n]``: the hardest, ascending, then the random ones, ascending.
        hardest: how many of ``units`` are of the hardest stratum.
        others: M, the number of units outside this stratum.
        denominator: D.
        seed: of the random draw; None: nothing was drawn.
    """

    units: Tensor
    hardest: int
    others: int
    denominator: float
    seed: int | None

    @property
    def complete(self) -> bool:
        """Whether all units are chosen."""
        return self.others == len(self.units) - self.hardest

    @property
    def weights(self) -> Tensor:
        """Float64 ``[n]``: what one more in a unit's numerator adds to the estimate, the standard error left aside."""
        weights = torch.ones(len(self.units), dtype=torch.float64)
        weights[self.hardest :] *= self._factor
        return weights / self.denominator

    @property
    def _factor(self) -> float:
        return self.others / max(len(self.units) - self.hardest, 1)

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
        hard, drawn = numerators[: self.hardest], numerators[self.hardest :]
        total, size, error = float(hard.sum()), float(hard.abs().sum()), 0.0
        if len(drawn):
            total += self._factor * float(drawn.sum())
            size += self._factor * float(drawn.abs().sum())
        if not self.complete:
            missing = 1 - len(drawn) / self.others
            error = errors * self.others * math.sqrt(missing / len(drawn)) * float(drawn.std(correction=1))
        # A float64 sum of n terms is off by at most n 2^-53 of the sum of their sizes (n 2^-53 << 1), in any order; so
        # is D. Deviations from a rounded mean have a larger square sum than those from the mean. Twice that covers the
        # few operations left.
        slack = (numerators.numel() + self.others + 64) * 2.0**-52 * (size + abs(error))
        value = (total + error + outward * slack) / self.denominator
        return value if math.isfinite(value) else math.inf


def all_units(denominators: Tensor) -> SampleChoice:
    """Every unit: the estimate is the loss of the set. ``denominators``: float64 ``[units]``."""
    units = torch.arange(len(denominators))
    return SampleChoice(units, len(units), 0, _total(denominators), None)


def choose_units(
    hardness: Tensor, denominators: Tensor, *, random_units: int = RANDOM_UNITS, seed: int | None = None
) -> SampleChoice:
    """The hardest 5 % (at least 500) and ``random_units`` random others; all where that is at least all units.

    Args:
        hardness: float64 ``[units]``, such as the largest numerator at a few waypoints; NaN is hardest.
        denominators: float64 ``[units]``.
        random_units: at least 2.
        seed: of the draw; None: from the operating system, so that no path can be made for the draw.

    Raises:
        LLPFError: ``random_units`` is below 2.
    """
    if random_units < 2:
        raise LLPFError(f"random_units must be at least 2, got {random_units}: one unit has no standard error")
    count = len(denominators)
    hardest = max(math.ceil(HARDEST_SHARE * count), FEWEST_HARDEST)
    if hardest + random_units >= count:
        return all_units(denominators)
    seed = secrets.randbits(63) if seed is None else seed
    order = hardness.nan_to_num(nan=math.inf, posinf=math.inf).argsort(descending=True, stable=True)
    others = order[hardest:].sort().values
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:random_units]
    units = torch.cat([order[:hardest].sort().values, others[drawn.sort().values]])
    return SampleChoice(units, hardest, len(others), _total(denominators), seed)


def _total(denominators: Tensor) -> float:
    total = float(denominators.sum())
    if not (total > 0 and math.isfinite(total)):
        raise LLPFError(f"the denominators of the loss sum to {total}: the loss of the set is not defined")
    return total
