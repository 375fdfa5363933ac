"""One LLPF tick as one affine map a layer: the rule, flags, spheres, the prepared op call."""

from ..flat.layers import match_layers
from .group_statistics import GroupStatistics
from .route import Mover, Route, radius_like
from .rule import LayerTreatment, Rule
from .segment_flags import sphere_table

__all__ = ["GroupStatistics", "LayerTreatment", "Mover", "Route", "Rule", "match_layers", "radius_like", "sphere_table"]
