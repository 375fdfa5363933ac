"""States with BatchNorm statistics of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batches import FixedSamples
from ..batches.precision import float32_products
from ..batches.statistics import normalization_layers, reestimate
from ..types import StateDict
from .problem import Problem


def own_statistics(problem: Problem, states: Sequence[StateDict]) -> list[dict[str, Tensor]]:
    """``states`` with BatchNorm statistics re-estimated at each, as the evaluator does; as they are without any.

    On the CPU, in the module's dtypes.
    """
    if not problem.has_statistics:
        return [dict(state) for state in states]
    twin = problem.copy()
    samples = problem.fixed(problem.estimation())
    found = []
    for state in states:
        load_state(twin, state)
        estimate(twin, samples)
        fitted = {name: value for name, value in twin.state_dict().items() if isinstance(value, Tensor)}
        found.append({name: value.detach().to("cpu", state[name].dtype, copy=True) for name, value in fitted.items()})
    return found


def estimate(module: nn.Module, samples: FixedSamples) -> None:
    """Re-estimate the statistics of ``module`` from ``samples``: in eval mode but for its BatchNorm layers, in true
    float32 on a GPU. Does nothing where there are none."""
    layer = next(normalization_layers(module), None)
    if layer is None or layer.running_mean is None:
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), float32_products("float32", layer.running_mean.device):
            reestimate(module, samples)
    finally:
        for part, training in modes:
            part.training = training


def load_state(module: nn.Module, state: StateDict) -> None:
    """Copy ``state`` (every tensor of the module's state dict, any dtype and device) into ``module``."""
    values = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(state[name])
