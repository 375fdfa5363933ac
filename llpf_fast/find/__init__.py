"""The search: settings, the finder, the one-call API."""

from .api import find_path
from .dialect import can_arrive, leads_to_model, resolve
from .finder import PathFinder
from .results import FindResult, TickProgress
from .settings import (
    CorrectionSettings,
    DataFlowSettings,
    LayerSettings,
    PaceSettings,
    Settings,
    Stage,
    StepSettings,
)
from .stacked_finder import Job, StackedFinder
from .together import choose_together

__all__ = [
    "CorrectionSettings",
    "DataFlowSettings",
    "FindResult",
    "Job",
    "LayerSettings",
    "PaceSettings",
    "PathFinder",
    "Settings",
    "StackedFinder",
    "Stage",
    "StepSettings",
    "TickProgress",
    "can_arrive",
    "choose_together",
    "find_path",
    "leads_to_model",
    "resolve",
]
