"""SegmentTable: offsets, chunks and groups as the kernels need them, and what it refuses."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llpf_fast.errors import LLPFError
from llpf_fast.flat import ALIGNMENT, CHUNK, Segment, SegmentTable
from llpf_fast.flat.table import aligned
from llpf_fast.ops import SegmentFlag, moments, scratch_numel

LENGTHS = st.lists(st.one_of(st.integers(1, 70), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1])), max_size=8)


@given(lengths=LENGTHS, alignment=st.sampled_from([1, 4, 16]))
def test_segments_are_aligned_in_order_and_apart(lengths: list[int], alignment: int) -> None:
    table = SegmentTable.from_lengths(lengths, alignment=alignment)
    assert len(table) == len(lengths)
    assert table.segments.shape == (len(lengths), 5)
    assert table.segments.dtype == torch.int64
    end = 0
    for length, (offset, size, distance, variance, flags), row in zip(
        lengths, table.segments.tolist(), table.rows, strict=True
    ):
        assert (row.offset, row.length) == (offset, size)
        assert size == length
        assert offset % alignment == 0
        assert end <= offset < end + alignment
        assert (distance, variance, flags) == (row.distance_group, row.variance_group, 0)
        end = offset + length
    assert end <= table.numel < end + alignment
    assert table.numel % alignment == 0


@given(lengths=LENGTHS, chunk=st.sampled_from([1, 16, 60, CHUNK]))
def test_chunks_cover_every_element_once_and_nothing_else(lengths: list[int], chunk: int) -> None:
    lengths = [min(length, 20 * chunk) for length in lengths]
    table = SegmentTable.from_lengths(lengths, chunk=chunk)
    assert table.chunks.dtype == torch.int64
    assert table.chunks.is_contiguous()
    assert table.chunks.shape[1] == 3
    covered = torch.zeros(table.numel, dtype=torch.int64)
    previous = (-1, -1)
    for segment, start, length in table.chunks.tolist():
        row = table.rows[segment]
        assert row.offset <= start < start + length <= row.offset + row.length
        assert (start - row.offset) % chunk == 0
        assert 1 <= length <= chunk
        assert (segment, start) > previous
        previous = (segment, start)
        covered[start : start + length] += 1
    inside = torch.zeros_like(covered)
    for row in table.rows:
        inside[row.offset : row.offset + row.length] = 1
    assert torch.equal(covered, inside)


def test_default_alignment_allows_16_byte_loads() -> None:
    table = SegmentTable.from_lengths([1, 17, 3])
    assert [row.offset for row in table.rows] == [0, 16, 48]
    assert table.numel == 64
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        size = torch.empty(0, dtype=dtype).element_size()
        assert all(row.offset * size % 16 == 0 for row in table.rows)
    assert [aligned(value) for value in (0, 1, ALIGNMENT, ALIGNMENT + 1)] == [0, 16, 16, 32]


def test_names_groups_and_flags_reach_the_tensor() -> None:
    table = SegmentTable.from_lengths(
        [4, 2, 9],
        names=["w", "b", "v"],
        flags=[SegmentFlag.NONE, SegmentFlag.HOLD | SegmentFlag.FREE, SegmentFlag.MASKED],
        distance_groups=[7, 7, 2],
        variance_groups=[5, 1, 1],
    )
    assert table.names == ("w", "b", "v")
    assert table.segments[:, 2:].tolist() == [[7, 5, 0], [7, 1, 18], [2, 1, 1]]


def test_with_flags_changes_flags_only() -> None:
    table = SegmentTable.from_lengths([4, 2])
    other = table.with_flags([SegmentFlag.FROZEN, SegmentFlag.COMPENSATE])
    assert other.segments[:, 4].tolist() == [32, 4]
    assert table.segments[:, 4].tolist() == [0, 0]
    assert torch.equal(other.segments[:, :4], table.segments[:, :4])
    assert torch.equal(other.chunks, table.chunks)
    with pytest.raises(LLPFError, match="2 segments but 3 flags"):
        table.with_flags([SegmentFlag.NONE] * 3)


def test_moves_to_another_device_with_the_same_rows() -> None:
    table = SegmentTable.from_lengths([4, 2], chunk=3)
    there = table.to("meta")
    assert there.segments.device.type == there.chunks.device.type == there.scratch().device.type == "meta"
    assert there.rows == table.rows
    assert there.chunk == 3
    assert table.segments.device.type == "cpu"
    assert there.to("cpu") == table


def test_pickles() -> None:
    table = SegmentTable.from_lengths([4, 2], chunk=3)
    table.segments, table.chunks  # noqa: B018  (cached tensors must not be in the way)
    again = pickle.loads(pickle.dumps(table))
    assert again == table
    assert torch.equal(again.chunks, table.chunks)


@pytest.mark.parametrize("paths", [1, 3])
def test_scratch_has_the_size_that_the_ops_require(paths: int) -> None:
    table = SegmentTable.from_lengths([CHUNK + 1, 2])
    scratch = table.scratch(paths)
    assert scratch.dtype == torch.float64
    assert scratch.numel() == scratch_numel(paths, 3, 2) == paths * (5 * 3 + 10 * 2)
    p = torch.randn(paths, table.numel)
    assert moments(p, p, table.segments, table.chunks, scratch).shape == (paths, 2, 5)


def test_an_empty_table_is_a_table() -> None:
    table = SegmentTable.from_lengths([])
    assert len(table) == table.numel == 0
    assert table.segments.shape == (0, 5)
    assert table.chunks.shape == (0, 3)


def segment(name: str, offset: int, length: int, distance: int = 0, variance: int = 0) -> Segment:
    return Segment(name, offset, length, distance, variance)


@pytest.mark.parametrize(
    ("rows", "numel", "says"),
    [
        ([segment("w", 0, 0)], 16, r"'w' \[0, 0\) is empty"),
        ([segment("w", 0, 5), segment("b", 4, 2)], 16, r"'b' \[4, 6\).*overlaps its neighbour"),
        ([segment("b", 4, 2), segment("w", 0, 5)], 16, r"'b' \[4, 6\).*overlaps its neighbour"),
        ([segment("w", 10, 7)], 16, r"'w' \[10, 17\).*leaves the buffer of 16 elements"),
        ([segment("w", -1, 3)], 16, r"'w' \[-1, 2\)"),
        ([segment("a", 0, 1, 0), segment("b", 1, 1, 1), segment("c", 2, 1, 0)], 16, "each distance group must be"),
        (
            [segment("a", 0, 1, 0, 3), segment("b", 1, 1, 1, 4), segment("c", 2, 1, 2, 3)],
            16,
            "each variance group must be neighbours",
        ),
    ],
)
def test_refuses(rows: list[Segment], numel: int, says: str) -> None:
    with pytest.raises(LLPFError, match=says) as caught:
        SegmentTable(tuple(rows), numel)
    assert "\n" not in str(caught.value)


def test_refuses_a_chunk_of_nothing() -> None:
    with pytest.raises(LLPFError, match="chunk must be at least 1, got 0"):
        SegmentTable.from_lengths([4], chunk=0)
