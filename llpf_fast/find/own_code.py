"""The optimiser and the norm rule that a caller hands over, or that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..correct.group_rates import OptimizerFactory
from ..errors import LLPFError
from ..user_code import norm_rule, optimizer_factory
from .settings import Settings

NormRule = Callable[[nn.Module], bool]


def own_optimizer(settings: Settings, given: OptimizerFactory | None = None) -> OptimizerFactory | None:
    """What makes the correction's optimiser; None for the fused SGD. LLPFError: given twice, or no such code."""
    if not settings.optimizer:
        return given
    if given is not None:
        raise LLPFError(_twice("optimizer"))
    return optimizer_factory(settings.optimizer)


def own_norm_rule(settings: Settings, given: NormRule | None = None) -> NormRule | None:
    """What counts more modules as normalization layers; LLPFError: given twice, or no such code."""
    if not settings.is_norm:
        return given
    if given is not None:
        raise LLPFError(_twice("is_norm"))
    return norm_rule(settings.is_norm)


def _twice(key: str) -> str:
    return f"{key} is given twice, as an argument and by name in the settings; leave one out"
