"""``DirectionalLoss``: the loss on a few directions through a network, with exact first and second derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..batches.fixed_samples import fixed_subset
from ..batches.loss import LossReduction, compute_loss
from ..batches.precision import float32_products, loss_in
from ..types import StateDict
from .problem import Problem
from .vector_loss import twice

_BATCH = 250


@dataclass(frozen=True)
class Taylor:
    """Second-order expansion in s of phi(s) = L(theta + sum_k s_k d_k) at one point.

    ``loss`` = phi; ``slopes [K]`` = d_k . gradient; ``curvature [K, K]`` = d_k^T H d_l; float64 on the CPU.
    """

    loss: float
    slopes: Tensor
    curvature: Tensor


class DirectionalLoss:
    """phi(s) = L(theta + sum_k s_k d_k) in eval mode on fixed training samples, and its derivatives in s.

    L is the loss of the set (:class:`~llpf_fast.batches.LossReduction`), however it is cut into batches. Derivatives in
    the K numbers s need no vector of the network's size: row k of d^T H d is one Hessian-vector product, backpropagated
    to s alone. At a kink (ReLU) they are those of the piece that the point lies on.

    Args:
        problem: network, loss, training data.
        samples: a fixed subset of the measured training samples, as a problem's; None or 0 for all of them.
        dtype: to compute in.
        batch_size: samples a pass; its graph is in memory for the second derivatives. Batches are not cut anew.
    """

    def __init__(
        self,
        problem: Problem,
        samples: int | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        batch_size: int = _BATCH,
    ) -> None:
        self._dtype, self._device, self._gradients = dtype, problem.device, problem.mode.gradients
        self._loss_fn = loss_in(problem.loss_fn, problem.device, dtype)
        subset = fixed_subset(problem.measured, samples or 0)
        self._samples = problem.fixed(subset, batch_size=batch_size, dtype=dtype)
        self._shares = self._samples.shares(LossReduction(self._loss_fn))
        self._batch_size = batch_size
        self._module = problem.copy(dtype).eval().requires_grad_(False)

    @property
    def samples(self) -> int:
        return self._samples.count

    def settings(self) -> dict[str, object]:
        """What derivatives depend on besides the problem: for cache keys."""
        return {"samples": self.samples, "dtype": str(self._dtype), "batch_size": self._batch_size}

    def loss(self, theta: StateDict) -> float:
        """L(theta); theta is a whole state dict."""
        point = self._cast(theta)
        with torch.set_grad_enabled(self._gradients), float32_products("float32", self._device):
            return float(sum(share * float(self._loss(point, x, y)) for x, y, share in self._batches()))

    def expand(self, theta: StateDict, directions: Sequence[Mapping[str, Tensor]], *, order: int = 2) -> Taylor:
        """Loss, slopes and (``order`` 2, else zeros) curvature at ``theta``, a whole state dict.

        Each direction has tensors by parameter name; other tensors do not move (a tied tensor
        is named by all of its names). Buffers are theta's.

        Raises:
            LLPFError: the model or the loss fails on the data.
        """
        base = self._cast(theta)
        moves = [{name: self._to(value) for name, value in direction.items()} for direction in directions]
        count = len(moves)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        slopes = torch.zeros(count, dtype=torch.float64, device=self._device)
        curvature = torch.zeros(count, count, dtype=torch.float64, device=self._device)
        with twice(self._device):
            s = torch.zeros(count, dtype=self._dtype, device=self._device, requires_grad=True)
            for inputs, targets, share in self._batches():
                point = dict(base)
                for k, move in enumerate(moves):
                    for name, value in move.items():
                        point[name] = point[name] + s[k] * value
                loss = share * self._loss(point, inputs, targets)
                total += loss.detach()
                (slope,) = torch.autograd.grad(loss, s, create_graph=order > 1)
                slopes += slope.detach()
                if order > 1 and slope.requires_grad:
                    for k in range(count):
                        (row,) = torch.autograd.grad(slope[k], s, retain_graph=k < count - 1, allow_unused=True)
                        if row is not None:
                            curvature[k] += row
        return Taylor(float(total), slopes.cpu(), (curvature + curvature.T).cpu() / 2)

    def _batches(self) -> Iterator[tuple[Any, Any, float]]:
        """(inputs, targets, share in the loss of the set) of the batches that have one."""
        for (inputs, targets, _), share in zip(self._samples, self._shares, strict=True):
            if share:
                yield inputs, targets, share

    def _loss(self, point: Mapping[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        def network(*given: Any, **named: Any) -> Any:
            return functional_call(self._module, dict(point), given, named, tie_weights=False)

        return compute_loss(network, self._loss_fn, inputs, targets)

    def _cast(self, state: StateDict) -> dict[str, Tensor]:
        return {name: self._to(value) for name, value in state.items()}

    def _to(self, value: Tensor) -> Tensor:
        """On the device; floating and complex values in the dtype's precision, others unchanged."""
        if value.is_complex():
            return value.detach().to(self._device, self._dtype.to_complex())
        return value.detach().to(self._device, self._dtype if value.is_floating_point() else None)
