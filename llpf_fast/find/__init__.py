"""The search: settings, the finder, the one-call API."""

from .api import find_path
from .finder import FindResult, PathFinder, TickProgress
from .settings import CorrectionSettings, Settings, Stage, StepSettings

__all__ = [
    "CorrectionSettings",
    "FindResult",
    "PathFinder",
    "Settings",
    "Stage",
    "StepSettings",
    "TickProgress",
    "find_path",
]
