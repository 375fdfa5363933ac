"""The search: settings, the finder, the one-call API."""

from ..modes import can_arrive, leads_to_model
from ..settings import (
    ArrivalSettings,
    CorrectionSettings,
    LayerSettings,
    PacingSettings,
    RecordSettings,
    ScheduleSettings,
    ScreeningSettings,
    Settings,
    SphereSettings,
    StageSettings,
    StepSettings,
)
from ..tick.rule import resolve
from .finder import PathFinder, find_path
from .record import FindResult, TickProgress
from .stacked_finder import SearchJob, StackedFinder, choose_together

__all__ = [
    "ArrivalSettings",
    "CorrectionSettings",
    "FindResult",
    "LayerSettings",
    "PacingSettings",
    "PathFinder",
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
    "can_arrive",
    "choose_together",
    "find_path",
    "leads_to_model",
    "resolve",
]
