"""Flat buffers: a module's parameters as views of one tensor, and the table of its segments."""

from .table import ALIGNMENT, CHUNK, Segment, SegmentTable

__all__ = ["ALIGNMENT", "CHUNK", "Segment", "SegmentTable"]
