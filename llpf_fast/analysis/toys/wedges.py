"""The wedge model of a loss landscape (Fort and Jastrzebski, arXiv 1906.04724), in formulas of our own.

The low-loss set is a union of n-dimensional wedges in D dimensions; the loss grows with the distance to the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import LLPFError
from .landscape import Landscape


class Wedges(Landscape):
    """L(p) = f(max(0, min_i d_i - thickness)), d_i the distance of p to the affine space c_i + span(U_i).

    Args:
        point: ``[D]``, where the module's parameter starts.
        bases: U_i, ``[D, n_i]`` each, of full rank; orthonormalised here. One or more.
        centres: c_i, ``[D]`` each; the origin when missing.
        thickness: in units of the parameters.
        profile: f, "square" or "identity".

    Raises:
        LLPFError: shapes that do not fit, a basis without full rank, a negative thickness.
    """

    def __init__(
        self,
        point: Tensor,
        bases: Sequence[Tensor],
        centres: Sequence[Tensor] | None = None,
        *,
        thickness: float = 0.0,
        profile: Literal["square", "identity"] = "square",
    ) -> None:
        super().__init__()
        if point.dim() != 1 or not bases:
            raise LLPFError("wedges need a point [D] and at least one basis [D, n]")
        if thickness < 0:
            raise LLPFError(f"the thickness must be 0 or more, got {thickness}")
        centres = [torch.zeros_like(point) for _ in bases] if centres is None else centres
        if len(centres) != len(bases) or any(centre.shape != point.shape for centre in centres):
            raise LLPFError(f"{len(bases)} wedges in {len(point)} dimensions need as many centres of that size")
        self.point = nn.Parameter(point.detach().clone())
        self.thickness, self.profile = thickness, profile
        self._count = len(bases)
        for i, (basis, centre) in enumerate(zip(bases, centres, strict=True)):
            self.register_buffer(f"basis{i}", _orthonormal(basis.to(point.dtype), len(point)), persistent=False)
            self.register_buffer(f"centre{i}", centre.detach().to(point.dtype), persistent=False)

    def distances(self, point: Tensor) -> Tensor:
        """Distance of ``point`` ``[D]`` to each wedge's axis space, ``[wedges]``; differentiable."""
        squares = []
        for i in range(self._count):
            basis, offset = self.get_buffer(f"basis{i}"), point - self.get_buffer(f"centre{i}")
            squares.append((offset - basis @ (basis.T @ offset)).square().sum())
        squared = torch.stack(squares)
        # The root's slope at 0 is infinite, and infinity times the 0 of the clamp below would be NaN.
        inside = squared == 0
        return torch.where(inside, 0.0, torch.where(inside, 1.0, squared).sqrt())

    def value(self) -> Tensor:
        beyond = (self.distances(self.point).min() - self.thickness).clamp_min(0)
        return beyond.square() if self.profile == "square" else beyond


def _orthonormal(basis: Tensor, size: int) -> Tensor:
    if basis.dim() != 2 or len(basis) != size or not 1 <= basis.shape[1] <= size:
        raise LLPFError(f"a basis in {size} dimensions must be [{size}, n], 1 <= n <= {size}, got {list(basis.shape)}")
    q, r = torch.linalg.qr(basis)
    if float(r.diagonal().abs().min()) <= 1e-6 * float(r.diagonal().abs().max()):
        raise LLPFError("the vectors of a basis depend on each other: leave out what the others span")
    return q


def all_coordinate_wedges_distance(point: Tensor, dimension: int) -> Tensor:
    """Distance of ``point`` ``[..., D]`` to the nearest of all spans of ``dimension`` coordinate axes, ``[...]``.

    The nearest keeps the largest coordinates: the root of the sum of the D - n smallest squares. Exact, without looking
    at the C(D, n) wedges.
    """
    size = point.shape[-1]
    if not 0 <= dimension <= size:
        raise LLPFError(f"wedges in {size} dimensions have 0 to {size} dimensions, got {dimension}")
    return point.square().sort(dim=-1).values[..., : size - dimension].sum(-1).sqrt()


def is_reached(size: int, wedge: int, subspace: int) -> bool:
    """Whether a random affine subspace of ``subspace`` dimensions meets a linear wedge of ``wedge`` dimensions in
    ``size`` dimensions: if and only if subspace >= size - wedge, almost surely (ours)."""
    return subspace >= size - wedge


def best_distance_law(norm: float, size: int, wedge: int, subspace: int) -> float:
    """About ||P0|| sqrt((D - n - d) / D), the distance that is left in a random subspace through P0; 0 where reached.

    Of the D - n directions across the wedge d can be undone, and P0 has an equal share of its square in each; the root
    of the mean square is exact over random orientations (ours).
    """
    return norm * math.sqrt(max(size - wedge - subspace, 0) / size)


def nearest_in_subspace(point: Tensor, directions: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The point of ``point + span(directions)`` nearest to the linear wedge span(``basis``), and its distance.

    By least squares, to the precision of the dtype: what a perfect optimiser would find.

    Args:
        point: ``[D]``. directions: ``[D, d]``, d may be 0. basis: ``[D, n]``, orthonormal.
    """

    def across(vectors: Tensor) -> Tensor:
        return vectors - basis @ (basis.T @ vectors)

    if directions.shape[1] == 0:
        return point, float(across(point).norm())
    # gelsd: the columns that are left across the wedge depend on each other as soon as there are more than D - n.
    step = torch.linalg.lstsq(across(directions), -across(point).unsqueeze(1), driver="gelsd").solution.squeeze(1)
    best = point + directions @ step
    return best, float(across(best).norm())
