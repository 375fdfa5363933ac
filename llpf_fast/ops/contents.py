"""Checks of the values in tables and arguments, on the CPU only: on a GPU reading them would wait for the device.

The compiled CPU kernels check the same rules with the same messages (``csrc/core/cpu/contents.cpp``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..modes import Destination
from .flags import SegmentFlag
from .library import check, rows

_KNOWN_FLAGS = sum(SegmentFlag)
_OUTSIDE = SegmentFlag.MASKED | SegmentFlag.FREE


def check_table_contents(op: str, p: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """A table stays in the buffer, its segments apart, its groups whole, each segment covered exactly by its chunks."""
    if p.device.type != "cpu":
        return
    numel, table = p.shape[-1], segments.tolist()
    fault = segment_fault(table, numel) or _chunk_fault(table, chunks.tolist())
    check(fault is None, lambda: "{}: {} (row {}, buffer of {} elements)".format(op, *(fault or ("", 0)), numel))


def segment_fault(table: Sequence[Sequence[int]], numel: int | None) -> tuple[str, int] | None:
    """What is wrong with ``segments``, and in which row; ``numel`` ``None``: a buffer of any size."""
    for s, (offset, length, _, _, flags) in enumerate(table):
        if offset < 0 or length < 0 or (numel is not None and offset + length > numel):
            return "segments: a row leaves the buffer", s
        if flags & ~_KNOWN_FLAGS:
            return "segments: a row has a flag that no op knows", s
    end = 0
    for s in sorted((s for s, row in enumerate(table) if row[1] > 0), key=lambda s: table[s][0]):
        if table[s][0] < end:
            return "segments: a row overlaps another", s
        end = table[s][0] + table[s][1]
    for column, kind in ((2, "distance"), (3, "variance")):
        labels = set()
        for s, row in enumerate(table):
            if s > 0 and row[column] == table[s - 1][column]:
                continue
            if row[column] in labels:
                return f"segments: the members of a {kind} group must be neighbours, and a row is apart", s
            labels.add(row[column])
    return None


def _chunk_fault(table: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]) -> tuple[str, int] | None:
    covered, previous = [row[0] for row in table], 0
    for c, (segment, start, length) in enumerate(chunks):
        if segment < previous or segment >= len(table):
            return "chunks: a row names no segment, or the rows are not sorted by segment", c
        previous = segment
        offset, size = table[segment][:2]
        if length < 0 or start < offset or start + length > offset + size:
            return "chunks: a row leaves its segment", c
        if length == 0:
            return "chunks: a row is empty", c
        if start < covered[segment]:
            return "chunks: the rows of a segment overlap or are not in order", c
        if start > covered[segment]:
            return "chunks: a row leaves a gap to the row before it", c
        covered[segment] = start + length
    for s, (offset, length, *_) in enumerate(table):
        if covered[s] != offset + length:
            return "segments: a row is not covered by its chunks", s
    return None


def check_rule_contents(
    op: str,
    paths: int,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    destination: int,
) -> None:
    """What an active path reads of a tick's rule must be numbers of at least 0; other values may be anything."""
    if segments.device.type != "cpu":
        return
    table = segments.tolist()
    count: dict[int, int] = {}
    for _, length, _, group, flags in table:
        count[group] = count.get(group, 0) + (0 if flags & SegmentFlag.MASKED else length)
    for k in active_paths(op, active, paths):
        _check_values(op, "step", step, k, range(2), most=math.inf)
        scaled = [s for s, row in enumerate(table) if count[row[3]] > 1 and not row[4] & _OUTSIDE]
        _check_values(op, "target_variance", target_variance, k, scaled)
        if radius is not None:
            to_norm = destination == Destination.NORM_SPHERE
            moved = [
                s for s, row in enumerate(table) if (to_norm or count[row[3]] > 1) and not row[4] & SegmentFlag.MASKED
            ]
            _check_values(op, "radius", radius, k, moved)


def active_paths(op: str, active: Tensor | None, paths: int) -> list[int]:
    """The paths whose row of ``active`` does not begin with 0; each row must begin with a number."""
    if active is None or paths == 0:
        return list(range(paths))
    first = active.reshape(paths, -1)[:, 0].tolist()
    for k, value in enumerate(first):
        check(
            not math.isnan(value),
            lambda k=k, v=value: f"{op}: active[{k}, 0] must be a number, got {v:g}",  # type: ignore[misc]
        )
    return [k for k, value in enumerate(first) if value != 0]


def _check_values(
    op: str, name: str, value: Tensor, path: int, columns: Sequence[int], most: float = math.nextafter(math.inf, 0)
) -> None:
    row, at = (value[path].tolist(), f"{path}, ") if value.dim() == 2 else (value.tolist(), "")
    for column in columns:
        check(
            0 <= row[column] <= most,
            lambda c=column: f"{op}: {name}[{at}{c}] must be at least 0 and finite, got {row[c]:g}",  # type: ignore[misc]
        )


def check_rates(op: str, p: Tensor, lr: Tensor, active: Tensor | None) -> None:
    """Learning rates of active paths must not be negative. (A NaN shows in what it trains.)"""
    if p.device.type != "cpu":
        return
    table = lr.reshape(-1, max(lr.shape[-1], 1)) if lr.dim() else lr.reshape(1, 1)
    for k in active_paths(op, active, rows(p)):
        rates = table[k if table.shape[0] > 1 else 0].tolist() if table.numel() else []
        at = f"{k}, " if lr.dim() == 2 else ""
        for s, rate in enumerate(rates):
            check(
                not rate < 0,
                lambda s=s, r=rate, at=at: f"{op}: lr[{at}{s}] must be at least 0 and finite, got {r:g}",  # type: ignore[misc]
            )
