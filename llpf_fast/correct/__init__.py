"""The loss-constraint correction: the gate, the update."""

from .correction import Correction, CorrectionResult

__all__ = ["Correction", "CorrectionResult"]
