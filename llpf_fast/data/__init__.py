"""Image data sets in memory, by name. Drawing batches from them is the work of :mod:`llpf_fast.correct`."""

from .dataset import ImageData
from .registry import dataset_classes, dataset_names, load_dataset, register_dataset

__all__ = ["ImageData", "dataset_classes", "dataset_names", "load_dataset", "register_dataset"]
