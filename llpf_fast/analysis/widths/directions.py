"""Random directions in the space of a network's parameters, and the laws they follow."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ...batches.sampling import key_of
from ...errors import LLPFError
from ...wording import unknown_name
from ..networks import Networks, State

DirectionLaw = Literal["gaussian", "filter"]

#: What results print: a width means nothing without the law of its directions.
LAWS: dict[str, str] = {
    "gaussian": "uniform on the unit sphere of all parameters (normalised Gaussian)",
    "filter": "Gaussian, every filter (first index of tensors of two or more dimensions) scaled to the norm of the "
    "network's own filter, one-dimensional tensors left alone (Li et al., arXiv 1712.09913), then length 1",
}


def random_direction(
    networks: Networks, state: State, law: DirectionLaw, seed: int, number: int, across: Tensor | None = None
) -> Tensor:
    """Direction ``number`` of the stream ``seed``: float64 ``[P]``, length 1.

    Args:
        networks: the architecture.
        state: the network whose filters count, for the law "filter".
        across: ``[P]``, not 0: the direction is made orthogonal to it.

    Raises:
        LLPFError: an unknown law; a direction that is 0 (no filters, or all of them 0).
    """
    if law not in LAWS:
        raise LLPFError(unknown_name("direction law", law, list(get_args(DirectionLaw))))
    generator = torch.Generator().manual_seed(key_of(seed, 0, number))
    direction = torch.randn(networks.size, generator=generator, dtype=torch.float64)
    if law == "filter":
        direction = filter_normalised(networks, state, direction)
    if across is not None:
        tangent = unit(across, "the path's direction")
        direction = direction - (direction @ tangent) * tangent
    return unit(direction, f"direction {number} (law {law!r})")


def filter_normalised(networks: Networks, state: State, direction: Tensor) -> Tensor:
    """``direction`` ``[P]`` with every filter scaled to the norm of that filter in ``state``; 0 in 1-D tensors.

    A filter is ``W[i]`` of a tensor of two or more dimensions: the weights into one unit or channel.
    """
    scaled = torch.zeros_like(direction)
    for name in networks.parameter_names:
        weight = state[name].detach().to("cpu", torch.float64)
        if weight.dim() < 2:
            continue
        place = networks.slices[name]
        rows = direction[place].view(len(weight), -1)
        norms = weight.reshape(len(weight), -1).norm(dim=1, keepdim=True)
        scaled[place] = (rows * (norms / rows.norm(dim=1, keepdim=True))).reshape(-1)
    return scaled


def unit(direction: Tensor, name: str) -> Tensor:
    """``direction`` with length 1; LLPFError naming it where it is 0 or not finite: there is no way to go."""
    length = float(direction.norm())
    if not 0 < length < float("inf"):
        raise LLPFError(f"{name} has length {length:g}: a width needs a direction that is finite and not 0")
    return direction / length
