"""What the paths mean: barriers, layer-wise connectivity, connectors, widths, curves, sharpness, pictures' numbers.

The ground floor, which every analysis stands on: ``Problem`` (network, loss, data), ``Networks`` (points of one space),
``CachedEvaluator`` (measurements kept by content hash), ``write_result``.
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
