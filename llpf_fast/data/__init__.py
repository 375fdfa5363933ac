"""Data sets in memory, by name. :mod:`llpf_fast.batches` draws batches from them."""

from .dataset import ImageData
from .registry import dataset_classes, dataset_names, load_dataset, register_dataset

__all__ = ["ImageData", "dataset_classes", "dataset_names", "load_dataset", "register_dataset"]
