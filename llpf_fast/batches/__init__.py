"""One batch: where it comes from, its forward pass, its loss. Shared by the search and the certificate."""

from .fixed_samples import stratified_subset
from .loss import LossFunction, loss_of
from .sampling import Batches, LoaderBatches, TensorBatches

__all__ = ["Batches", "LoaderBatches", "LossFunction", "TensorBatches", "loss_of", "stratified_subset"]
