"""Analyses of loss landscapes: barriers, layer-wise connectivity, connectors, widths, curves, sharpness, projections.

Every analysis uses ``Problem`` (network, loss, data), ``Networks`` (points of one parameter space), ``CachedEvaluator``
(evaluations cached by content) and ``write_result``.
"""

from .cache import CachedEvaluator, cached_numbers, cached_training
from .networks import Networks, load_networks
from .output import write_result
from .problem import Problem

__all__ = [
    "CachedEvaluator",
    "Networks",
    "Problem",
    "cached_numbers",
    "cached_training",
    "load_networks",
    "write_result",
]
