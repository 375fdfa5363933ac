"""One LLPF tick as one affine map a layer: the rule, flags, spheres, the prepared op call."""

from .mover import Mover
from .patterns import match_layers
from .policy import sphere_table
from .route import Route, radius_like
from .rule import NormRule, Rule
from .spread import Spread

__all__ = ["Mover", "NormRule", "Route", "Rule", "Spread", "match_layers", "radius_like", "sphere_table"]
