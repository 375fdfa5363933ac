"""Batches: data in every form, sampling, forward pass and loss; shared by search and certificate."""

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
    "LossReduction",
    "TensorBatches",
    "TensorData",
    "as_data",
    "compute_loss",
    "materialize",
    "stratified_subset",
    "training_batches",
]
