"""The loss-constraint correction: counter-based batches, the gate, the update."""

from .correction import Corrected, Correction
from .draw import Batches, LoaderBatches, TensorBatches
from .loss import LossFunction, loss_of

__all__ = ["Batches", "Corrected", "Correction", "LoaderBatches", "LossFunction", "TensorBatches", "loss_of"]
