"""``VectorLoss``: a network's loss as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..batches.forward import computing_dtype, forward
from ..batches.loss import LossReduction, batch_loss
from ..batches.precision import checked_device, float32_products, loss_in, module_in
from ..batches.sampling import Batches
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..path import compare_architectures
from ..types import LossFunction
from .networks import Networks


class VectorLoss:
    """The loss of ``module`` at parameters given as one vector ``[P]``.

    The vector is that of :class:`~llpf_fast.analysis.networks.Networks`: every floating parameter in the module's
    order, tied ones once. Works on a copy of the module, with that copy's buffers.

    Args:
        module: the architecture; wrappers (torch.compile, DataParallel) are removed.
        loss_fn: (model output, targets) -> scalar loss of a batch.
        train: train mode (dropout, batch statistics: as in training) or eval mode (as certificates evaluate).
        dtype: to compute in; when missing float64 for a network of float64, else float32. Complex buffers stay
            complex; the tensors of a loss module (class weights) get this dtype, too.
        gradients: the forward itself takes gradients (:class:`~llpf_fast.batches.forward.ForwardMode`).

    Raises:
        LLPFError: a module without floating parameters, or with parameters that are not finite; one that cannot be
            copied.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        *,
        train: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        gradients: bool = False,
    ) -> None:
        module = unwrapped(module)
        self._layout = Networks([module.state_dict()], ["the model"], module)
        self.device, self.dtype = checked_device(device), computing_dtype(module) if dtype is None else dtype
        self._module = module_in(copied(module, "the model"), self.device, self.dtype).requires_grad_(False)
        self._module.train(train)
        self._loss_fn = loss_in(loss_fn, self.device, self.dtype)
        #: How the loss of a set is made of the losses of its batches.
        self.reduction = LossReduction(self._loss_fn)
        self._gradients = gradients
        self._shapes = [self._layout[0][name].shape for name in self._layout.parameter_names]

    @property
    def size(self) -> int:
        """P."""
        return self._layout.size

    def pack(self, state: Mapping[str, Tensor], name: str = "the state") -> Tensor:
        """The parameters of ``state`` as one vector ``[P]`` of this network's dtype, on its device.

        Raises:
            LLPFError: ``state``, called ``name``, is of another architecture.
        """
        compare_architectures(state, self._layout[0], name, "the model")
        return self._layout.flatten(state).to(self.device, self.dtype)

    def unpack(self, vector: Tensor, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The complete state dict at ``vector [P]``, with the buffers and the dtypes of ``template``; on the CPU."""
        state = self._layout.unflatten(vector.detach().to("cpu"), template)
        return {name: value.to("cpu", template[name].dtype, copy=True) for name, value in state.items()}

    def load_buffers(self, state: Mapping[str, Tensor]) -> None:
        """Copy the buffers of ``state``, which eval mode uses besides the vector."""
        for name, buffer in self._module.named_buffers():
            if name in state:
                buffer.copy_(state[name])

    def output(self, vector: Tensor, inputs: Any) -> Any:
        """The network's output on one batch at ``vector [P]``, differentiable by it."""
        names, sizes = self._layout.parameter_names, [shape.numel() for shape in self._shapes]
        parts = zip(names, vector.split(sizes), self._shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        return forward(lambda *given, **named: functional_call(self._module, parameters, given, named), inputs)

    def loss(self, vector: Tensor, inputs: Any, targets: Any) -> Tensor:
        """Loss of one batch at ``vector [P]``: a scalar, differentiable by it; twice only within :func:`twice`.

        Raises:
            LLPFError: the forward or the loss fails on the data.
        """
        return batch_loss(self._loss_fn, self.output(vector, inputs), targets)

    def value(self, vector: Tensor, inputs: Any, targets: Any) -> Tensor:
        """:meth:`loss` as a number: a scalar tensor without a graph."""
        with torch.set_grad_enabled(self._gradients):
            return self.loss(vector, inputs, targets).detach()

    def gradient(self, vector: Tensor, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Loss (a scalar tensor) and gradient ``[P]`` of one batch at ``vector``."""
        point = vector.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.loss(point, inputs, targets)
            (gradient,) = torch.autograd.grad(loss, point)
        return loss.detach(), gradient


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators, from which dropout draws, start at ``seed`` inside and are restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def twice(device: torch.device) -> Iterator[None]:
    """Inside, results can be differentiated twice: fused attention kernels, which have no second derivative, are off.

    Matrix products of float32 on a GPU are true float32, as in evaluations.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), float32_products("float32", device):
        yield


class BatchGradient:
    """``(vector [P], round) -> (loss, gradient [P])`` on the batch of that round; ``steps`` counts the calls.

    One call is one gradient step, the unit of every method's budget: a forward and a backward pass over one batch.
    """

    def __init__(self, network: VectorLoss, batches: Batches) -> None:
        self._network, self._batches = network, batches
        self.steps = 0

    def __call__(self, vector: Tensor, round_: int) -> tuple[float, Tensor]:
        inputs, targets = self._batches.batch(round_)
        self.steps += 1
        loss, gradient = self._network.gradient(vector, inputs, targets)
        return float(loss), gradient
