"""Which names of a state dict stand for one tensor."""

from __future__ import annotations

from torch import Tensor, nn


def ties(module: nn.Module) -> list[tuple[str, ...]]:
    """Groups of two or more ``state_dict`` names that are one parameter or buffer object, in the order of the module.

    Tied weights (``head.weight = embedding.weight``) and modules that are used in several places have them.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]
