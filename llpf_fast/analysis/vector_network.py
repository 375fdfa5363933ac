"""``VectorNetwork``: a network's loss as a function of one flat vector, for any architecture and loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ..batches.sampling import Batches
from ..path import compare_architectures
from .networks import Networks

#: (model output, targets) -> scalar mean over the batch.
LossFunction = Callable[[Any, Any], Tensor]


class VectorNetwork:
    """The loss of ``module`` at parameters given as one vector ``[P]``; nothing of the network is rewritten.

    The vector is that of :class:`~llpf_fast.analysis.networks.Networks`: every floating parameter in the module's
    order, tied ones once. Works on a copy of the module, with that copy's buffers.

    Args:
        module: the architecture.
        loss_fn: (model output, targets) -> mean loss.
        train: train mode (dropout, batch statistics: as in training) or eval mode (what certificates look at).

    Raises:
        LLPFError: a module without floating parameters, or with values that are not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        *,
        train: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._layout = Networks([module.state_dict()], ["the model"], module)
        self._module = copy.deepcopy(module).to(device, dtype).requires_grad_(False)
        self._module.train(train)
        self._loss_fn, self.device, self.dtype = loss_fn, torch.device(device), dtype
        self._shapes = [self._layout[0][name].shape for name in self._layout.parameter_names]

    @property
    def size(self) -> int:
        """P."""
        return self._layout.size

    @property
    def has_batch_statistics(self) -> bool:
        """Whether eval mode uses running statistics, which belong to one point only."""
        return any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in self._module.modules())

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
        """Take the buffers of ``state``: what eval mode computes with beside the vector."""
        for name, buffer in self._module.named_buffers():
            if name in state:
                buffer.copy_(state[name])

    def output(self, vector: Tensor, inputs: Any) -> Any:
        """The network's output on one batch at ``vector [P]``, differentiable by it."""
        names, sizes = self._layout.parameter_names, [shape.numel() for shape in self._shapes]
        parts = zip(names, vector.split(sizes), self._shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        if isinstance(inputs, Mapping):
            return functional_call(self._module, parameters, (), dict(inputs))
        return functional_call(self._module, parameters, tuple(inputs) if isinstance(inputs, list) else inputs)

    def loss(self, vector: Tensor, inputs: Any, targets: Any) -> Tensor:
        """Mean loss of one batch at ``vector [P]``: a scalar, differentiable by it any number of times."""
        return self._loss_fn(self.output(vector, inputs), targets)

    def gradient(self, vector: Tensor, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Loss (a scalar tensor) and gradient ``[P]`` of one batch at ``vector``."""
        point = vector.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.loss(point, inputs, targets)
            (gradient,) = torch.autograd.grad(loss, point)
        return loss.detach(), gradient


class BatchGradient:
    """``(vector [P], round) -> (loss, gradient [P])`` on the batch of that round; ``steps`` counts the calls.

    One call is one gradient step: a forward and a backward pass over one batch, what every method's budget is counted
    in.
    """

    def __init__(self, network: VectorNetwork, batches: Batches) -> None:
        self._network, self._batches = network, batches
        self.steps = 0

    def __call__(self, vector: Tensor, round_: int) -> tuple[float, Tensor]:
        inputs, targets = self._batches.draw(round_)
        self.steps += 1
        loss, gradient = self._network.gradient(vector, inputs, targets)
        return float(loss), gradient
