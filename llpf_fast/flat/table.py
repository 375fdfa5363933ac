"""``SegmentTable``: the segments of a flat buffer, their groups and flags, and the chunks that kernels work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import LLPFError
from ..ops import SegmentFlag, scratch_numel

#: Every parameter starts at a multiple of this many elements: 16-byte loads for every dtype.
ALIGNMENT = 16
#: Elements per chunk: two float32 arrays of one chunk fill a 32 KiB first-level cache, and each of 256 GPU threads
#: has 16 elements.
CHUNK = 4096


@dataclass(frozen=True)
class Segment:
    """One row of the table: a parameter tensor, or a range of its rows.

    ``distance_group`` and ``variance_group`` are labels; segments with equal labels form a group and must be
    neighbours in the table. What a flag on *some* members means for the others (flags on all are the usual case):

    - MASKED: counts nowhere; distance, mean and variance are those of the rest, so the target variance has to be too.
    - HOLD: counts in mean and variance but not in the distance, and is projected with the rest.
    - FREE: counts in mean, variance and distance and moves, but is not scaled, so the group as a whole misses its
      target variance. Every backend does the same, but it is hardly ever useful: set FREE on all or none.
    """

    name: str
    offset: int
    length: int
    distance_group: int
    variance_group: int
    flags: SegmentFlag = SegmentFlag.NONE


@dataclass(frozen=True)
class SegmentTable:
    """Segments of one flat buffer of ``numel`` elements (padding included), on one device.

    ``segments`` is int64 ``[S, 5]`` (offset, length, distance group, variance group, flags) and ``chunks`` is int64
    ``[C, 3]`` (segment, start, length), sorted by segment: what the ops take.
    """

    rows: tuple[Segment, ...]
    numel: int
    chunk: int = CHUNK
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise LLPFError(f"segment table: chunk must be at least 1, got {self.chunk}")
        covered = 0
        for row in sorted(self.rows, key=lambda r: r.offset):
            if row.length < 1 or row.offset < covered or row.offset + row.length > self.numel:
                raise LLPFError(
                    f"segment table: segment {row.name!r} [{row.offset}, {row.offset + row.length}) is empty, "
                    f"overlaps its neighbour or leaves the buffer of {self.numel} elements"
                )
            covered = row.offset + row.length
        for kind in ("distance_group", "variance_group"):
            labels = [getattr(row, kind) for row in self.rows]
            starts = [g for i, g in enumerate(labels) if i == 0 or labels[i - 1] != g]
            if len(starts) != len(set(starts)):
                raise LLPFError(f"segment table: the members of each {kind.replace('_', ' ')} must be neighbours")

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        flags: Sequence[SegmentFlag] | None = None,
        distance_groups: Sequence[int] | None = None,
        variance_groups: Sequence[int] | None = None,
        chunk: int = CHUNK,
        alignment: int = ALIGNMENT,
    ) -> SegmentTable:
        """Segments of the given lengths one after another, each start padded to ``alignment``."""
        rows, offset = [], 0
        for i, length in enumerate(lengths):
            rows.append(
                Segment(
                    name=names[i] if names else f"segment{i}",
                    offset=offset,
                    length=length,
                    distance_group=distance_groups[i] if distance_groups else i,
                    variance_group=variance_groups[i] if variance_groups else i,
                    flags=flags[i] if flags else SegmentFlag.NONE,
                )
            )
            offset = aligned(offset + length, alignment)
        return cls(tuple(rows), offset, chunk)

    @cached_property
    def segments(self) -> Tensor:
        """int64 ``[S, 5]`` on ``device``."""
        values = [[r.offset, r.length, r.distance_group, r.variance_group, int(r.flags)] for r in self.rows]
        return torch.tensor(values, dtype=torch.int64).reshape(-1, 5).to(self.device)

    @cached_property
    def chunks(self) -> Tensor:
        """int64 ``[C, 3]`` on ``device``."""
        values = [
            [i, row.offset + start, min(self.chunk, row.length - start)]
            for i, row in enumerate(self.rows)
            for start in range(0, row.length, self.chunk)
        ]
        return torch.tensor(values, dtype=torch.int64).reshape(-1, 3).to(self.device)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> SegmentTable:
        """The same table with its tensors on ``device``."""
        return replace(self, device=torch.device(device))

    def with_flags(self, flags: Sequence[SegmentFlag]) -> SegmentTable:
        """The same table with other flags, one per segment."""
        if len(flags) != len(self.rows):
            raise LLPFError(f"segment table: {len(self.rows)} segments but {len(flags)} flags")
        rows = tuple(replace(row, flags=flag) for row, flag in zip(self.rows, flags, strict=True))
        return replace(self, rows=rows)

    def cut(self, pieces: Mapping[int, Sequence[tuple[str, int]]]) -> SegmentTable:
        """The table with some segments (by index) cut into consecutive pieces: (suffix of the name, length).

        The pieces have the group labels and flags of their segment, so a tick computes the same. Pieces are not
        aligned: only whole parameters are.
        """
        rows: list[Segment] = []
        for i, row in enumerate(self.rows):
            offset = row.offset
            for suffix, length in pieces.get(i, [("", row.length)]):
                rows.append(replace(row, name=row.name + suffix, offset=offset, length=length))
                offset += length
            if offset != row.offset + row.length:
                raise LLPFError(
                    f"segment table: the pieces of {row.name!r} have {offset - row.offset} elements, not {row.length}"
                )
        return replace(self, rows=tuple(rows))

    def scratch(self, paths: int = 1) -> Tensor:
        """Uninitialized float64 scratch memory on ``device`` for any op on this table."""
        size = scratch_numel(paths, self.chunks.shape[0], len(self.rows))
        return torch.empty(size, dtype=torch.float64, device=self.device)


def aligned(value: int, alignment: int = ALIGNMENT) -> int:
    """``value`` rounded up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment
