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

__all__ = [
    "CorrectionSettings",
    "DataFlowSettings",
    "FindResult",
    "LayerSettings",
    "PaceSettings",
    "PathFinder",
    "Settings",
    "Stage",
    "StepSettings",
    "TickProgress",
    "can_arrive",
    "find_path",
    "leads_to_model",
    "resolve",
]
