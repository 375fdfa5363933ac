"""A function of the parameters alone, dressed as a network with data and a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Landscape(nn.Module):
    """A module whose parameters are a point and whose output, for any batch, is the loss at that point.

    Subclasses say what ``value`` is. With :func:`landscape_samples` as data and :func:`landscape_loss` as loss function
    everything that works on networks works on it, with gradients.
    """

    def value(self) -> Tensor:
        """The loss at the module's own parameters: a scalar, differentiable."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, ...]`` to the loss, once a sample: ``[B]``."""
        return self.value().expand(len(inputs))


def landscape_loss(output: Tensor, target: Any) -> Tensor:
    """What a landscape put out is its loss; ``target`` plays no part."""
    return output.mean()


def landscape_samples(count: int = 1) -> tuple[Tensor, Tensor]:
    """(inputs ``[count, 1]``, targets ``[count]`` float): a training set for a landscape, which looks at none of it."""
    return torch.zeros(count, 1), torch.zeros(count)
