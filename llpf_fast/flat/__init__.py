"""Flat buffers: a module's parameters as views of one tensor, and the table of its segments."""

from .kinds import is_normalization, layer_kinds
from .layer_kind import LayerKind
from .parameters import FlatParameters
from .table import ALIGNMENT, CHUNK, Segment, SegmentTable

__all__ = [
    "ALIGNMENT",
    "CHUNK",
    "FlatParameters",
    "LayerKind",
    "Segment",
    "SegmentTable",
    "is_normalization",
    "layer_kinds",
]
