"""The correction: training after each move until the mean batch loss is at most the threshold."""

from .correction import Correction, CorrectionResult

__all__ = ["Correction", "CorrectionResult"]
