"""Toy landscapes with closed forms: wedges, the mountainside, the hyperbola."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import LLPFError


class Landscape(nn.Module):
    """A module whose parameters are a point and whose output, for any batch, is the loss at that point.

    Subclasses define ``value``. With :func:`landscape_samples` as data and :func:`landscape_loss` as loss function it
    is a network for every analysis, with gradients.
    """

    def value(self) -> Tensor:
        """The loss at the module's parameters: a scalar, differentiable."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, ...]`` to the loss, once a sample: ``[B]``."""
        return self.value().expand(len(inputs))


def landscape_loss(output: Tensor, target: Any) -> Tensor:
    """The mean output of a landscape, which is its loss; ``target`` is not used."""
    return output.mean()


def landscape_samples(count: int = 1) -> tuple[Tensor, Tensor]:
    """(inputs ``[count, 1]``, targets ``[count]`` float): a training set for a landscape, which does not use its
    values."""
    return torch.zeros(count, 1), torch.zeros(count)


class Hyperbola(Landscape):
    """The loss of a linear network of one unit a layer, f(x) = a b x, fitted to f(1) = 1 (closed forms: ours).

    Its minima are the points (t, 1/t): one branch for t > 0, one for t < 0. Both of one branch are connected at loss
    0, along the hyperbola; the straight line between them is not at 0. Between the branches lies the saddle at the
    origin, of loss 1/2: no path from one to the other stays lower.
    """

    def __init__(self, t: float = 1.0, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([t], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([1 / t], dtype=dtype))

    def value(self) -> Tensor:
        return ((self.a * self.b - 1) ** 2 / 2).sum()

    @staticmethod
    def minimum(t: float) -> dict[str, Tensor]:
        """The state (t, 1/t), t not 0."""
        return {"a": torch.tensor([t], dtype=torch.float64), "b": torch.tensor([1 / t], dtype=torch.float64)}

    @staticmethod
    def line_loss(t: float, s: float, fraction: float) -> float:
        """At ``fraction`` x of the straight line from (t, 1/t) to (s, 1/s): x^2 (1-x)^2 (t-s)^4 / (2 t^2 s^2)."""
        return (fraction * (1 - fraction)) ** 2 * (t - s) ** 4 / (2 * t * t * s * s)

    @staticmethod
    def midpoint_barrier(t: float, s: float) -> float:
        """(t-s)^4 / (32 t^2 s^2): the highest loss of that line; 1/2, the saddle's, where s = -t."""
        return Hyperbola.line_loss(t, s, 0.5)

    @staticmethod
    def second_order_barrier(t: float, s: float) -> float:
        """What (1/16) D^T (H1 + H2) D predicts from the endpoints, D their difference: four times the true barrier.

        The Hessian at (t, 1/t) is the outer square of v = (1/t, t), and v . D = (s-t)^2 / (t s); so at s, by symmetry,
        and the formula gives (t-s)^4 / (8 t^2 s^2).
        """
        return 4 * Hyperbola.midpoint_barrier(t, s)

    @staticmethod
    def radial_width(t: float, direction: tuple[float, float], threshold: float) -> float:
        """Smallest r with L((t, 1/t) + r u) > ``threshold``, exact, or inf; ``direction`` u has length 1.

        On the ray a b - 1 = c r + q r^2 with c = t u_b + u_a / t and q = u_a u_b, to be compared with +-k,
        k = sqrt(2 threshold).
        """
        if threshold < 0:
            raise LLPFError(f"threshold {threshold} is below 0, the loss of the minimum")
        c = t * direction[1] + direction[0] / t
        q, k = direction[0] * direction[1], math.sqrt(2 * threshold)
        return min((root for level in (k, -k) for root in _positive_roots(q, c, -level)), default=math.inf)


def _positive_roots(a: float, b: float, c: float) -> list[float]:
    """Of a r^2 + b r + c = 0 where the sign changes (a root that only touches 0 leaves no set)."""
    if a == 0:
        roots = [-c / b] if b else []
    else:
        inside = b * b - 4 * a * c
        roots = [(-b + sign * math.sqrt(inside)) / (2 * a) for sign in (1, -1)] if inside > 0 else []
    return [root for root in roots if root > 0]


class Mountainside(Landscape):
    """L(x, y) = slope y^2 / 2 + ridge (x^2 - 1)^2 / 4: a descent in y along a ridge at x = 0 with a valley either side.

    After the picture of arXiv 2406.16300 (the formula is ours). Runs start high on the ridge, (x0, y0) with a small
    x0 > 0, and follow the negative gradient; none crosses the ridge. Two runs that split at time T by +-noise in x end
    in different valleys when at T their distance from the ridge line is below the noise, else in the same valley.
    """

    def __init__(
        self,
        x: float = 0.0,
        y: float = 1.0,
        *,
        slope: float = 1.0,
        ridge: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if slope <= 0 or ridge <= 0:
            raise LLPFError(f"slope and ridge must be above 0, got {slope} and {ridge}")
        self.slope, self.ridge = slope, ridge
        self.x = nn.Parameter(torch.tensor([x], dtype=dtype))
        self.y = nn.Parameter(torch.tensor([y], dtype=dtype))

    def value(self) -> Tensor:
        return (self.slope * self.y**2 / 2 + self.ridge * (self.x**2 - 1) ** 2 / 4).sum()

    def descend(self, x: float, y: float, time: float) -> tuple[float, float]:
        """Where gradient flow from (x, y) is after ``time``, exact.

        y decays as exp(-slope t); z = x^2 obeys z' = 2 ridge z (1 - z), the logistic equation.
        """
        if x == 0:
            return 0.0, y * math.exp(-self.slope * time)
        x_end = math.copysign(1 / math.sqrt(1 + (1 / x**2 - 1) * math.exp(-2 * self.ridge * time)), x)
        return x_end, y * math.exp(-self.slope * time)

    def split_runs(
        self, x: float, y: float, split: float, noise: float, total: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where two runs are at time ``total`` with a common descent until ``split``, which then differ by
        +-``noise``."""
        x_split, y_split = self.descend(x, y, split)
        return (
            self.descend(x_split + noise, y_split, total - split),
            self.descend(x_split - noise, y_split, total - split),
        )

    def latest_instability(self, x: float, noise: float) -> float:
        """The split time below which the two runs end on different sides: where the common descent passes ``noise``.

        ln(noise^2 (1 - x^2) / (x^2 (1 - noise^2))) / (2 ridge), from the logistic equation; 0 < x, noise < 1.
        """
        if not (0 < x < 1 and 0 < noise < 1):
            raise LLPFError(f"x and noise must lie between 0 and 1, got {x} and {noise}")
        return math.log(noise**2 * (1 - x**2) / (x**2 * (1 - noise**2))) / (2 * self.ridge)

    def line_loss(self, a: tuple[float, float], b: tuple[float, float], fraction: float) -> float:
        """The loss at ``fraction`` of the straight line from a = (x, y) to b."""
        x, y = (p + fraction * (q - p) for p, q in zip(a, b, strict=True))
        return self.slope * y**2 / 2 + self.ridge * (x**2 - 1) ** 2 / 4

    def barrier_between_valleys(self) -> float:
        """ridge / 4: of the line between (1, 0) and (-1, 0), and the least that any path between them must climb."""
        return self.ridge / 4


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

    The nearest keeps the largest coordinates: the root of the sum of the D - n smallest squares. Exact, without
    enumerating the C(D, n) wedges.
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

    By least squares, to the precision of the dtype.

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
