"""One LLPF tick as one affine map a layer: the rule, segment flags, spheres, the op call."""

from ..flat.layers import match_layers
from .group_statistics import GroupStatistics
from .route import Route, radius_like
from .rule import LayerTreatment, Rule
from .segment_flags import sphere_table

__all__ = ["GroupStatistics", "LayerTreatment", "Route", "Rule", "match_layers", "radius_like", "sphere_table"]
