"""Landscapes small enough to know the answer: the tools run on them as on networks."""

from .hyperbola import Hyperbola
from .landscape import Landscape, landscape_loss, landscape_samples
from .mountainside import Mountainside
from .wedges import Wedges, all_coordinate_wedges_distance, best_distance_law, is_reached, nearest_in_subspace

__all__ = [
    "Hyperbola",
    "Landscape",
    "Mountainside",
    "Wedges",
    "all_coordinate_wedges_distance",
    "best_distance_law",
    "is_reached",
    "landscape_loss",
    "landscape_samples",
    "nearest_in_subspace",
]
