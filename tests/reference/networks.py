"""A small network with every kind of layer that a tick treats apart, and two sets of values for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

#: Elements of the destination spread wider than those of the start: unequal variances, as after another weight decay.
_WIDER = 1.4


class LayerNorm2d(nn.LayerNorm):
    """As timm has it: LayerNorm over channels, a subclass."""


class SimpleRMSNorm(nn.Module):
    """As language-model libraries have it: written from scratch, known only by its class's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


class Attention(nn.Module):
    """As timm and vit-pytorch have it: one linear layer for query, key and value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class SplitAttention(nn.Module):
    """As language-model libraries have it: three linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)


class Zoo(nn.Module):
    """Never called: a tick sees values only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.batch = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.conv3 = nn.Conv2d(8, 4, 3)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.attention = Attention(12)
        self.layer = nn.LayerNorm(12)
        self.multihead = nn.MultiheadAttention(12, 2)
        self.layer2d = LayerNorm2d(12)
        self.split = SplitAttention(8)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=10)
        self.rms = nn.RMSNorm(12)
        self.own_rms = SimpleRMSNorm(12)
        self.fine = nn.Linear(12, 16)
        self.temperature = nn.Parameter(torch.empty(1))
        self.head = nn.Linear(16, 10)


NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm, nn.RMSNorm, SimpleRMSNorm)


def zoo(dtype: torch.dtype) -> nn.Module:
    """The network with running statistics that a stray write would change."""
    module = Zoo().to(dtype)
    with torch.no_grad():
        for i, buffer in enumerate(module.buffers()):
            buffer.copy_(torch.arange(buffer.numel()).reshape(buffer.shape) + i + 1)
    return module


def values(seed: int, *, wider: bool = False) -> dict[str, np.ndarray]:
    """float64 arrays by parameter name, each exactly a float32.

    Weights of ``fine`` have variance 1e-5, where the authors' epsilon of 1e-4 decides the scale. Of the start
    (``wider`` False) the bias of ``head`` is zero, as freshly initialised: it has no variance to return to. Query, key
    and value rows differ in variance, so that it shows whose sphere they are put on.
    """
    generator = np.random.default_rng(seed)
    module = Zoo()
    norms = {name for name, owner in module.named_modules() if isinstance(owner, NORMS)}
    values: dict[str, np.ndarray] = {}
    for name, parameter in module.named_parameters():
        owner, _, attribute = name.rpartition(".")
        mean, spread = (1.0, 0.2) if owner in norms and attribute == "weight" else (0.03, 0.1)
        if owner == "fine":
            spread = 1e-5**0.5
        drawn = mean + spread * (_WIDER if wider else 1.0) * generator.standard_normal(tuple(parameter.shape))
        if name == "head.bias" and not wider:
            drawn = np.zeros(tuple(parameter.shape))
        if "qkv" in name or "in_proj" in name:
            third = drawn.shape[0] // 3
            drawn[:third] *= 2.0
            drawn[2 * third :] *= 0.5
        values[name] = drawn.astype(np.float32).astype(np.float64)
    return values


def perturbations(seed: int, ticks: int, like: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What training would do between ticks: small, fixed, each element exactly a float32."""
    generator = np.random.default_rng(seed)
    return [
        {
            name: (2e-3 * generator.standard_normal(value.shape)).astype(np.float32).astype(np.float64)
            for name, value in like.items()
        }
        for _ in range(ticks)
    ]


def as_state(arrays: dict[str, np.ndarray], module: nn.Module) -> dict[str, Tensor]:
    """A complete state dict of ``module``: these parameters, and its buffers as they are."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    dtype = next(module.parameters()).dtype
    return state | {name: torch.from_numpy(value).to(dtype) for name, value in arrays.items()}
