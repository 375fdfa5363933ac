"""Flat buffers: a module's parameters as views of one tensor, and the table of its segments."""

from .buffers import check_buffers, statistics
from .copying import copied
from .forward_order import DataFlow, data_flow_order
from .layers import LayerKind, is_normalization, layer_kinds
from .parameter_sites import ties
from .parameters import FlatParameters
from .table import ALIGNMENT, CHUNK, Segment, SegmentTable
from .wrappers import unwrapped

__all__ = [
    "ALIGNMENT",
    "CHUNK",
    "DataFlow",
    "FlatParameters",
    "LayerKind",
    "Segment",
    "SegmentTable",
    "check_buffers",
    "copied",
    "data_flow_order",
    "is_normalization",
    "layer_kinds",
    "statistics",
    "ties",
    "unwrapped",
]
