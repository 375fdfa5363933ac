"""Layers by name: shell globs, or regular expressions after ``re:``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ..errors import LLPFError

_REGEX = "re:"
_LISTED = 8


def matches(name: str, pattern: str) -> bool:
    """Whether the whole of ``name`` matches. A cut attention tensor (``NAME[query]``) also answers to ``NAME``.

    Raises:
        LLPFError: the regular expression is none.
    """
    names = (name, name.partition("[")[0])
    if pattern.startswith(_REGEX):
        try:
            return any(re.fullmatch(pattern[len(_REGEX) :], n) for n in names)
        except re.error as error:
            raise LLPFError(f"layer pattern {pattern!r} is no regular expression: {error}") from error
    return any(fnmatchcase(n, pattern) for n in names)


def match_layers(names: Sequence[str], patterns: Iterable[str], what: str = "stage pattern") -> list[bool]:
    """Which segment names match at least one pattern; a pattern without any match is refused by name."""
    chosen = [False] * len(names)
    for pattern in patterns:
        hits = [matches(name, pattern) for name in names]
        if not any(hits):
            more = ", ..." if len(names) > _LISTED else ""
            raise LLPFError(f"{what} {pattern!r} matches no layer; layers are {', '.join(names[:_LISTED])}{more}")
        chosen = [old or hit for old, hit in zip(chosen, hits, strict=True)]
    return chosen
