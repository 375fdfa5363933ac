"""The Hessian of the loss of a fixed set, through products with vectors only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batches import FixedSamples
from ..batches.precision import float32_products
from ..errors import LLPFError, require
from .vector_loss import VectorLoss, twice

#: Called after every product with the number of products so far.
OnProduct = Callable[[int], None]


class Hessian:
    """The Hessian of the loss of a set at ``vector [P]``, as a symmetric linear operator.

    The loss is that of the whole set (:class:`~llpf_fast.batches.LossReduction`), however it is cut into batches, and
    so are its derivatives. Products are exact (two backward passes a batch, R. Pearlmutter 1994). With piecewise linear
    activations it is the Hessian almost everywhere, without what the kinks would add. Not curvlinops'
    products: these take any loss function and any input that the certificate takes, and need no further package.

    Args:
        samples: the fixed set; a list of batches (inputs, targets) is placed on the network's device, in its dtype.
        on_product: called after every product.

    Raises:
        LLPFError: no samples, or none with a label; later, where the forward or the loss fails.
    """

    def __init__(
        self,
        network: VectorLoss,
        vector: Tensor,
        samples: FixedSamples | Sequence[tuple[Any, Any]],
        on_product: OnProduct | None = None,
    ) -> None:
        if not isinstance(samples, FixedSamples):
            samples = FixedSamples(list(samples), batch_size=1, device=network.device, dtype=network.dtype)
        self._network, self._samples, self._on_product = network, samples, on_product
        self._shares = samples.shares(network.reduction)
        self._vector = vector.detach()
        self.products = 0

    def _batches(self) -> Iterator[tuple[Any, Any, float]]:
        """(inputs, targets, share in the loss of the set) of the batches that have one."""
        for (inputs, targets, _), share in zip(self._samples, self._shares, strict=True):
            if share:
                yield inputs, targets, share

    @property
    def size(self) -> int:
        """P."""
        return self._vector.numel()

    def loss(self, shift: Tensor | None = None) -> float:
        """Loss of the set at the point, or ``shift [P]`` away from it."""
        at = self._vector if shift is None else self._vector + shift
        with float32_products("float32", self._network.device):
            return float(sum(share * float(self._network.value(at, x, y)) for x, y, share in self._batches()))

    def gradient(self) -> Tensor:
        """Of the loss of the set at the point, ``[P]``."""
        total = torch.zeros_like(self._vector)
        with float32_products("float32", self._network.device):
            for inputs, targets, share in self._batches():
                total.add_(self._network.gradient(self._vector, inputs, targets)[1], alpha=share)
        return total

    def __matmul__(self, direction: Tensor) -> Tensor:
        """H ``direction``, both ``[P]``."""
        total = torch.zeros_like(self._vector)
        for inputs, targets, share in self._batches():
            point = self._vector.clone().requires_grad_(True)
            with twice(self._network.device):
                loss = self._network.loss(point, inputs, targets)
                (slope,) = torch.autograd.grad(loss, point, create_graph=True)
                if not slope.requires_grad:
                    continue  # a loss linear in the parameters: no curvature
                (product,) = torch.autograd.grad(slope, point, direction, allow_unused=True)
            if product is not None:
                total.add_(product, alpha=share)
        self.products += 1
        if self._on_product is not None:
            self._on_product(self.products)
        return total


def top_eigenvalue(hessian: Hessian, *, tolerance: float = 1e-3, most: int = 200, seed: int = 0) -> float:
    """The largest (algebraic) eigenvalue, to ``tolerance`` relative, by scipy's implicitly restarted Lanczos method.

    NaN where the Hessian has values that are not finite.

    Raises:
        LLPFError: no convergence within about ``most`` products.
    """
    arpack = require("scipy.sparse.linalg", "the top eigenvalue of a Hessian")
    vector = hessian._vector
    start = torch.randn(hessian.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if hessian.size < 3:
        columns = [hessian @ row for row in torch.eye(hessian.size, dtype=vector.dtype, device=vector.device)]
        return float(torch.linalg.eigvalsh(torch.stack(columns)).max())
    first = hessian @ start.to(vector)
    if not bool(first.isfinite().all()):
        return math.nan
    if not bool(first.any()):
        return 0.0  # ARPACK refuses a matrix of zeros

    def product(values: Any) -> Any:
        return (hessian @ torch.from_numpy(values.reshape(-1)).to(vector)).to("cpu", torch.float64).numpy()

    operator = arpack.LinearOperator((hessian.size, hessian.size), matvec=product, dtype="float64")
    basis = min(20, hessian.size)
    try:
        values = arpack.eigsh(
            operator,
            k=1,
            which="LA",
            ncv=basis,
            tol=tolerance,
            v0=start.numpy(),
            maxiter=max(1, most // basis),
            return_eigenvectors=False,
        )
    except arpack.ArpackNoConvergence as error:
        raise LLPFError(
            f"the top Hessian eigenvalue has not converged to {tolerance:g} within {hessian.products} products; allow "
            "more, or a larger tolerance"
        ) from error
    except arpack.ArpackError:
        return math.nan
    return float(values[0])


@dataclass(frozen=True)
class Trace:
    """``mean`` over probes and its standard error; ``probes`` of them."""

    mean: float
    standard_error: float
    probes: int


def trace(hessian: Hessian, *, probes: int = 16, seed: int = 0) -> Trace:
    """Hutchinson's estimate: the mean of v.Hv over random signs v, unbiased, with the standard error of that mean.

    Raises:
        LLPFError: fewer than 2 probes, which give no standard error.
    """
    if probes < 2:
        raise LLPFError(f"the trace needs at least 2 probes for a standard error, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (hessian.size,), generator=generator).to(hessian._vector) * 2 - 1
        estimates.append(float(signs.double() @ (hessian @ signs).double()))
    values = torch.tensor(estimates, dtype=torch.float64)
    return Trace(float(values.mean()), float(values.std(correction=1)) / math.sqrt(probes), probes)


def sam_one_step(hessian: Hessian, rho: float) -> float:
    """L(theta + rho g / |g|) - L(theta) with the full gradient g on the set: the inner step of SAM (arXiv 2010.01412).

    One ascent step, so a lower bound of the rise within the ball of radius ``rho`` (L2, all parameters), and 0 where
    the gradient is zero.

    Raises:
        LLPFError: ``rho`` is not a positive number.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise LLPFError(f"rho must be a positive number, got {rho}")
    slope = hessian.gradient()
    length = float(slope.double().norm())
    if length == 0:
        return 0.0
    return hessian.loss(slope * (rho / length)) - hessian.loss()
