"""Per-layer learning rates for any ``torch.optim`` optimiser: one parameter group a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat import FlatParameters


def one_group_each(module: nn.Module) -> Iterable[dict[str, Any]]:
    """Parameter groups to make an optimiser from, one for every parameter of ``module`` (tied ones once)."""
    return [{"params": [parameter]} for parameter in module.parameters()]


class GroupRates:
    """Scales the learning rate of every group by its segment's factor.

    Args:
        optimizer: made from :func:`one_group_each`; its present learning rates are the base.
        flat: whose segments the factors belong to.

    Raises:
        LLPFError: the optimiser has put the parameters into other groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, flat: FlatParameters) -> None:
        names = {id(parameter): name for name, parameter in flat.module.named_parameters()}
        segment = {name.partition("[")[0]: i for i, name in reversed(list(enumerate(flat.table.names)))}
        self._optimizer = optimizer
        #: Base rate and segment, a group; None for parameters without elements.
        self._bases: list[tuple[float, int] | None] = []
        for group in optimizer.param_groups:
            if len(group["params"]) != 1 or "lr" not in group:
                raise LLPFError(
                    "the learning-rate rule needs one parameter group with an lr for each parameter: "
                    "let the optimizer function pass on the groups it is given, or set correction.lr_rule to none"
                )
            at = segment.get(names.get(id(group["params"][0]), ""))
            self._bases.append(None if at is None else (float(group["lr"]), at))

    def set(self, scale: Tensor | None) -> None:
        """``scale`` is float64 ``[S]``, read once by the host; None goes back to the base."""
        factors = None if scale is None else scale.tolist()
        # Groups by place, not by object: load_state_dict puts new ones there.
        for group, known in zip(self._optimizer.param_groups, self._bases, strict=True):
            if known is not None:
                base, at = known
                group["lr"] = base if factors is None else base * factors[at]


OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
