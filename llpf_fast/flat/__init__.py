"""Flat buffers: a module's parameters as views of one tensor, and the table of its segments."""

from .buffers import check_buffers, statistics
from .copying import copied
from .data_flow import DataFlow, data_flow_order
from .kinds import is_normalization, layer_kinds
from .layer_kind import LayerKind
from .parameters import FlatParameters
from .table import ALIGNMENT, CHUNK, Segment, SegmentTable
from .ties import ties
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
