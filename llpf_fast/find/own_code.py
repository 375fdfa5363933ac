"""The optimiser and the norm rule that a caller hands over, or that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ..correct.group_rates import OptimizerFactory
from ..errors import LLPFError
from ..user_code import checked_norm_rule, checked_optimizer, norm_rule, optimizer_factory
from .settings import Settings

NormRule = Callable[[nn.Module], bool]
Own = TypeVar("Own")


def own_optimizer(settings: Settings, given: OptimizerFactory | None = None) -> OptimizerFactory | None:
    """What makes the correction's optimiser; None for the fused SGD. LLPFError: given twice, or no such code."""
    checked = None if given is None else checked_optimizer(given)
    return _one("optimizer", settings.optimizer, checked, optimizer_factory)


def own_norm_rule(settings: Settings, given: NormRule | None = None) -> NormRule | None:
    """What counts more modules as normalization layers; LLPFError: given twice, no rule, or no such code."""
    checked = None if given is None else checked_norm_rule(given)
    return _one("is_norm", settings.is_norm, checked, norm_rule)


def _one(key: str, named: str, given: Own | None, load: Callable[[str], Own]) -> Own | None:
    if not named:
        return given
    if given is not None:
        raise LLPFError(f"{key} is given twice, as an argument and by name in the settings; leave one out")
    return load(named)
