"""The registry: one file an op, under the op's stem; the correction's whole iteration beside them."""

from __future__ import annotations

from ..harness.case import Case
from . import affine, coefficients, correction, loss_gate, moments, sgd, tick

_MODULES = (tick, sgd, moments, affine, coefficients, loss_gate, correction)
TIERS = ("quick", "usual", "large")


def registry() -> list[Case]:
    """Every case, in the order in which they are timed."""
    return [case for module in _MODULES for case in module.cases()]


def chosen(tier: str, only: str = "") -> list[Case]:
    """Cases up to ``tier`` whose name contains ``only`` (any case of letters)."""
    allowed = TIERS[: TIERS.index(tier) + 1]
    return [case for case in registry() if case.tier in allowed and only.lower() in case.name.lower()]
