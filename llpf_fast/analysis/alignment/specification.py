"""Which axes of which tensors must be permuted together for the function to stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor of the state dict. Unit u takes the ``repeat`` places from u * repeat on: 1, except where
    flattened channels feed a linear layer."""

    tensor: str
    axis: int
    repeat: int = 1


@dataclass(frozen=True)
class Units:
    """``size`` hidden units (channels, features) that may change places, if they do so on all ``axes`` at once."""

    size: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class PermutationSpecification:
    """Groups of units, each free to be permuted by itself; units that are in no group stay where they are."""

    groups: tuple[Units, ...]

    def identity(self) -> list[Tensor]:
        return [torch.arange(group.size) for group in self.groups]

    def apply(self, state: Mapping[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """``state`` with unit ``permutations[g][u]`` of group g moved to place u; new tensors, values bit for bit."""
        result = {name: value.clone() for name, value in state.items()}
        for group, permutation in zip(self.groups, permutations, strict=True):
            for axis in group.axes:
                result[axis.tensor] = permute(result[axis.tensor], axis, permutation)
        return result


def permute(value: Tensor, axis: Axis, permutation: Tensor) -> Tensor:
    """``value`` with its units along ``axis`` in the order of ``permutation [size]``."""
    index = (permutation.unsqueeze(1) * axis.repeat + torch.arange(axis.repeat)).reshape(-1)
    return value.index_select(axis.axis, index.to(value.device))
