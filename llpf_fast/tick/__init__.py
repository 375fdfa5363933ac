"""One LLPF tick as one affine map a layer: flags, target variances, the prepared op call."""

from .mover import Mover
from .policy import m2m_flags, match_layers, variance_of

__all__ = ["Mover", "m2m_flags", "match_layers", "variance_of"]
