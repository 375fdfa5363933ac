"""BatchNorm statistics re-estimated at a point of a path."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fixed_samples import FixedSamples
from .forward import forward
from .precision import float32_products

#: Training samples from which statistics are re-estimated.
STATISTICS_SIZE = 2_000


def normalization_layers(module: nn.Module) -> Iterator[_BatchNorm]:
    """The layers of ``module`` whose running statistics evaluation uses."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.running_mean is not None:
            yield layer


def reestimate(module: nn.Module, samples: FixedSamples) -> None:
    """Replace the running statistics by the cumulative mean over ``samples`` (as torch.optim.swa_utils.update_bn does).

    Interpolated running statistics belong to no network: between two modes the activations' variance collapses
    (REPAIR, arXiv 2211.08403), so each point is evaluated with statistics re-estimated there. Meanwhile only the
    BatchNorm layers are in training mode; dropout is off, and products are true float32. Every batch counts the same,
    so a last short one is left out. Does nothing to a module without such layers.
    """
    layers = list(normalization_layers(module))
    if not layers:
        return
    modes = [(part, part.training) for part in module.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    calls = dict.fromkeys(layers, 0)

    def newest_share(layer: _BatchNorm, _: object) -> None:
        # What momentum None means, but for that a layer then reads the number of its calls from the device.
        calls[layer] += 1
        layer.momentum = 1.0 / calls[layer]

    hooks = []
    module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            hooks.append(layer.register_forward_pre_hook(newest_share))
        assert isinstance(layers[0].running_mean, Tensor)
        with float32_products("float32", layers[0].running_mean.device):
            for inputs, _, size in samples:
                if size >= samples.batches[0][2]:
                    forward(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes:
            part.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum
