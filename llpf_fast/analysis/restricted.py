"""``RestrictedLoss``: the loss on a few directions through a network, with exact first and second derivatives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..batches import stratified_subset
from ..batches.loss import loss_of
from .networks import State
from .problem import Problem

_BATCH = 250


@dataclass(frozen=True)
class Taylor:
    """Second-order expansion in s of phi(s) = L(theta + sum_k s_k d_k) at one point.

    ``loss`` = phi; ``slopes [K]`` = d_k . gradient; ``curvature [K, K]`` = d_k^T H d_l; float64 on the CPU.
    """

    loss: float
    slopes: Tensor
    curvature: Tensor


class RestrictedLoss:
    """phi(s) = L(theta + sum_k s_k d_k) in eval mode on fixed training samples, and its derivatives in s.

    Derivatives in the K numbers s need no vector of the network's size: row k of d^T H d is one Hessian-vector product,
    backpropagated to s alone. At a kink (ReLU) they are those of the piece that the point lies on.

    Args:
        problem: network, loss, training data.
        samples: a fixed stratified subset of the measured training samples; None or 0 for all of them.
        dtype: to compute in.
        batch_size: samples a pass; its graph is held for the second derivatives.
    """

    def __init__(
        self,
        problem: Problem,
        samples: int | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        batch_size: int = _BATCH,
    ) -> None:
        inputs, targets = problem.measured
        chosen = stratified_subset(targets, samples or 0)
        self._dtype, self._device, self._loss_fn = dtype, problem.device, problem.loss_fn
        self._inputs, self._targets = (part[chosen].to(problem.device) for part in (inputs, targets))
        self._batch_size = batch_size
        module = getattr(problem.module, "_orig_mod", problem.module)
        self._module = copy.deepcopy(module).to(problem.device, dtype).eval().requires_grad_(False)

    @property
    def samples(self) -> int:
        return len(self._targets)

    def settings(self) -> dict[str, object]:
        """What derivatives depend on besides the problem: for cache keys."""
        return {"samples": self.samples, "dtype": str(self._dtype), "batch_size": self._batch_size}

    def loss(self, theta: State) -> float:
        """L(theta); theta is a whole state dict."""
        with torch.no_grad():
            return float(sum(loss for loss in self._batch_losses(self._cast(theta))))

    def expand(self, theta: State, directions: Sequence[Mapping[str, Tensor]], *, order: int = 2) -> Taylor:
        """Loss, slopes and (``order`` 2, else zeros) curvature at ``theta``, a whole state dict.

        Each direction has tensors by parameter name; what it does not name does not move (a tied
        tensor is named by all of its names). Buffers stay theta's.

        Raises:
            LLPFError: the model or the loss fails on the data.
        """
        base = self._cast(theta)
        moves = [{name: self._to(value) for name, value in direction.items()} for direction in directions]
        count = len(moves)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        slopes = torch.zeros(count, dtype=torch.float64, device=self._device)
        curvature = torch.zeros(count, count, dtype=torch.float64, device=self._device)
        # Fused attention kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            s = torch.zeros(count, dtype=self._dtype, device=self._device, requires_grad=True)
            for inputs, targets in self._batches():
                share = len(targets) / self.samples
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

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        split = zip(self._inputs.split(self._batch_size), self._targets.split(self._batch_size), strict=True)
        return [(self._to(inputs) if inputs.is_floating_point() else inputs, targets) for inputs, targets in split]

    def _batch_losses(self, point: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            self._loss(point, inputs, targets).double() * (len(targets) / self.samples)
            for inputs, targets in self._batches()
        ]

    def _loss(self, point: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            output: Tensor = functional_call(self._module, dict(point), (x,), tie_weights=False)
            return output

        if targets.is_floating_point():
            targets = self._to(targets)
        return loss_of(forward, self._loss_fn, inputs, targets)

    def _cast(self, state: State) -> dict[str, Tensor]:
        return {k: self._to(v) if v.is_floating_point() else v.to(self._device) for k, v in state.items()}

    def _to(self, value: Tensor) -> Tensor:
        return value.detach().to(self._device, self._dtype)
