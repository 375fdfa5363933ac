"""Random directions that span a subspace, kept or made anew whenever they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...batches.sampling import key_of
from ...errors import LLPFError

#: Directions made at a time: 32 of LeNet5 are 8 MB.
_BLOCK = 32


class RandomBasis:
    """``dimension`` Gaussian directions of length 1, rows of M^T ``[d, N]`` (Li et al., arXiv 1804.08838).

    The first d rows of a larger basis of the same seed are the smaller one: subspaces are nested. Above ``memory``
    bytes the rows are made anew, block by block, at each use, with the same values (some 40 times slower on a CPU).

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
        #: Whether the rows are kept.
        self.is_stored = dimension * mask.numel() * mask.element_size() <= memory
        if self.is_stored:
            stored = mask.new_empty(dimension, mask.numel())
            for first, rows in self._blocks():
                stored[first : first + len(rows)] = rows
            self._stored = stored

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, rows ``[<= 32, N]``)."""
        for first in range(0, self.dimension, _BLOCK):
            generator = torch.Generator().manual_seed(key_of(self._seed, 1, first))
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
