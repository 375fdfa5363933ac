"""Find, certify and draw low-loss paths between neural networks.

The names below are looked up on first use (PEP 562): ``import llpf_fast`` costs nothing, and ``import llpf_fast.ops``
needs torch and nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import LLPFError as LLPFError
    from .find import PathFinder as PathFinder
    from .find import find_path as find_path
    from .find import lower_path as lower_path
    from .flat import FlatParameters as FlatParameters
    from .flat import SegmentTable as SegmentTable
    from .ops import info as info
    from .ops import use_backend as use_backend
    from .path import open_path as open_path
    from .settings import Settings as Settings
    from .verify import certify as certify
    from .verify import verify_run as verify_run

__version__ = "0.1.0"

_HOME = {
    "FlatParameters": ".flat",
    "LLPFError": ".errors",
    "PathFinder": ".find",
    "SegmentTable": ".flat",
    "Settings": ".settings",
    "certify": ".verify",
    "find_path": ".find",
    "info": ".ops",
    "lower_path": ".find",
    "open_path": ".path",
    "use_backend": ".ops",
    "verify_run": ".verify",
}

__all__ = [
    "FlatParameters",
    "LLPFError",
    "PathFinder",
    "SegmentTable",
    "Settings",
    "__version__",
    "certify",
    "find_path",
    "info",
    "lower_path",
    "open_path",
    "use_backend",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
