"""The loss-constraint correction: counter-based batches, the gate, the update."""

from .correction import Corrected, Correction, LossFunction
from .draw import Batches, LoaderBatches, TensorBatches

__all__ = ["Batches", "Corrected", "Correction", "LoaderBatches", "LossFunction", "TensorBatches"]
