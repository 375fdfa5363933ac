"""What to say when a name is not known: the name, and the nearest ones that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line: ``unknown recipe 'lenet-mnist'; did you mean 'lenet5-mnist-m2m'?``, or every known name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known)}"
