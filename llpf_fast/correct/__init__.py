"""The loss-constraint correction: the gate, the update."""

from .correction import Corrected, Correction

__all__ = ["Corrected", "Correction"]
