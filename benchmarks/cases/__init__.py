"""The registry: one file an op, under the op's stem; the correction's whole iteration beside them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..harness.case import Case

#: What a search spends most of its time in comes first, then the other files of this folder. They are imported when
#: asked for: an older package, which compare.py times as well, may lack what one of them needs.
_FIRST = ("tick", "sgd", "moments")
_STEMS = (*_FIRST, *sorted({path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - {*_FIRST}))
TIERS = ("quick", "usual", "large")


def of(op: str) -> list[Case]:
    """The cases of one op."""
    return list(import_module(f".{op.rstrip('_')}", __name__).cases())


def registry() -> list[Case]:
    """Every case, in the order in which they are timed."""
    return [case for stem in _STEMS for case in of(stem)]


def chosen(tier: str, only: str = "") -> list[Case]:
    """Cases up to ``tier`` whose name contains ``only`` (any case of letters)."""
    allowed = TIERS[: TIERS.index(tier) + 1]
    return [case for case in registry() if case.tier in allowed and only.lower() in case.name.lower()]
