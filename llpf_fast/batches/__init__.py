"""One batch: where it comes from, its forward pass, its loss. Shared by the search and the certificate."""

from ..types import LossFunction
from .data import BatchedData, Data, DatasetData, TensorData, as_data
from .fixed_samples import FixedSamples, materialize, stratified_subset
from .loss import LossReduction, compute_loss
from .sampling import Batches, IndexedBatches, LoaderBatches, TensorBatches, training_batches

__all__ = [
    "BatchedData",
    "Batches",
    "Data",
    "DatasetData",
    "FixedSamples",
    "IndexedBatches",
    "LoaderBatches",
    "LossFunction",
    "LossReduction",
    "TensorBatches",
    "TensorData",
    "as_data",
    "compute_loss",
    "materialize",
    "stratified_subset",
    "training_batches",
]
