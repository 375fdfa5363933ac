"""Weight matching (Ainsworth et al., "Git Re-Basin", arXiv 2209.04836, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LLPFError, require
from .permutations import PermutationSpecification, permute

#: A new assignment must be better by more than this share: less may be rounding.
_PROGRESS = 1e-12
#: Buffers that move with their units but are not compared.
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Alignment:
    """``state``: the second network with its units in another order, its values bit for bit.

    ``permutations[g][u]`` is the unit that is now at index u of group g. ``before`` and ``after`` are the L2 distances
    between the first network's and the second's permuted tensors (those that belong to some group).
    """

    state: dict[str, Tensor]
    permutations: list[Tensor]
    before: float
    after: float
    sweeps: int


def align(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    specification: PermutationSpecification,
    *,
    seed: int = 0,
    restarts: int = 3,
    max_sweeps: int = 100,
) -> Alignment:
    """Permute the units of ``second`` so that its weights are as close as possible to those of ``first``.

    Coordinate ascent on the inner product of both networks' weights: all groups but one are fixed, and that one's best
    permutation is a linear assignment problem. The first sweep goes from input to output, later ones in random order,
    until none improves. The result is a local optimum (the joint problem is NP-hard); the best of ``restarts`` is
    taken, of which all but the first begin in random order.

    Raises:
        LLPFError: values that are not finite.
    """
    names = sorted({axis.tensor for group in specification.groups for axis in group.axes})
    names = [name for name in names if not name.endswith(_STATISTICS)]
    ours, theirs = (
        {name: state[name].detach().to("cpu", torch.float64) for name in names} for state in (first, second)
    )
    for name in names:
        if not (bool(ours[name].isfinite().all()) and bool(theirs[name].isfinite().all())):
            raise LLPFError(f"networks cannot be aligned: {name} has values that are not finite")
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, list[Tensor], int] | None = None
    for restart in range(max(restarts, 1)):
        permutations, sweeps = _ascend(ours, theirs, specification, generator, restart > 0, max_sweeps)
        moved = _permuted(theirs, specification, permutations)
        score = sum(float((ours[name] * moved[name]).sum()) for name in names)
        if best is None or score > best[0] * (1 + _PROGRESS):
            best = score, permutations, sweeps
    assert best is not None
    moved = _permuted(theirs, specification, best[1])
    return Alignment(
        state=specification.apply(second, best[1]),
        permutations=best[1],
        before=_distance(ours, theirs),
        after=_distance(ours, moved),
        sweeps=best[2],
    )


def _permuted(
    tensors: Mapping[str, Tensor],
    specification: PermutationSpecification,
    permutations: list[Tensor],
    *,
    but: int | None = None,
) -> dict[str, Tensor]:
    """Those of ``tensors`` that belong to groups, permuted by all groups except number ``but``."""
    result = dict(tensors)
    for number, (group, permutation) in enumerate(zip(specification.groups, permutations, strict=True)):
        for axis in group.axes:
            if number != but and axis.tensor in result:
                result[axis.tensor] = permute(result[axis.tensor], axis, permutation)
    return result


def _ascend(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    specification: PermutationSpecification,
    generator: torch.Generator,
    random_first: bool,
    max_sweeps: int,
) -> tuple[list[Tensor], int]:
    linear_sum_assignment = require("scipy.optimize", "weight matching").linear_sum_assignment
    permutations = specification.identity()
    count = len(permutations)
    for sweep in range(max_sweeps):
        progress = False
        in_order = sweep == 0 and not random_first
        order = range(count) if in_order else torch.randperm(count, generator=generator).tolist()
        for number in order:
            group = specification.groups[number]
            moved = _permuted(theirs, specification, permutations, but=number)
            # products[u, v]: inner product of the weights of unit u of the first and unit v of the second network.
            products = torch.zeros(group.size, group.size, dtype=torch.float64)
            for axis in group.axes:
                if axis.tensor in ours:
                    a, b = (
                        value.movedim(axis.axis, 0).reshape(group.size, -1)
                        for value in (ours[axis.tensor], moved[axis.tensor])
                    )
                    products.addmm_(a, b.T)
            _, columns = linear_sum_assignment(products.numpy(), maximize=True)
            best = torch.from_numpy(columns)
            rows = torch.arange(group.size)
            old, new = float(products[rows, permutations[number]].sum()), float(products[rows, best].sum())
            if new > old + _PROGRESS * max(abs(old), abs(new)):
                permutations[number], progress = best, True
        if not progress:
            return permutations, sweep + 1
    return permutations, max_sweeps


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum().sqrt())
