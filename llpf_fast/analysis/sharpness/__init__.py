"""Sharpness along a path, and what averages and ensembles of its waypoints are worth."""

from .along import SharpnessAlong, sharpness_along
from .ensemble import EnsembleAlong, ensemble_along
from .hessian import Hessian, Trace, sam_one_step, top_eigenvalue, trace

__all__ = [
    "EnsembleAlong",
    "Hessian",
    "SharpnessAlong",
    "Trace",
    "ensemble_along",
    "sam_one_step",
    "sharpness_along",
    "top_eigenvalue",
    "trace",
]
