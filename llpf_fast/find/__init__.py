"""The search: settings, the finder, the one-call API."""

from ..settings import (
    ArrivalSettings,
    CorrectionSettings,
    LayerSettings,
    LowerSettings,
    PacingSettings,
    RecordSettings,
    ScheduleSettings,
    ScreeningSettings,
    Settings,
    SphereSettings,
    StageSettings,
    StepSettings,
)
from .finder import PathFinder, find_path
from .lower import LowerResult, PathLowering, lower_path
from .record import FindResult, TickProgress
from .stacked_finder import SearchJob, StackedFinder, choose_parallel

__all__ = [
    "ArrivalSettings",
    "CorrectionSettings",
    "FindResult",
    "LayerSettings",
    "LowerResult",
    "LowerSettings",
    "PacingSettings",
    "PathFinder",
    "PathLowering",
    "RecordSettings",
    "ScheduleSettings",
    "ScreeningSettings",
    "SearchJob",
    "Settings",
    "SphereSettings",
    "StackedFinder",
    "StageSettings",
    "StepSettings",
    "TickProgress",
    "choose_parallel",
    "find_path",
    "lower_path",
]
