"""The GPU's reduction, executed on the CPU: right, and in exactly the order that the header promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import SegmentFlag, backend

from .comparison import same_bits

pytestmark = pytest.mark.skipif(backend.why_not("cpp", "cpu") is not None, reason="_C is not built")

LANES, WARP = 256, 32
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]


def blocked(p: Tensor, d: Tensor | None, table: SegmentTable) -> Tensor:
    scratch = table.scratch(1 if p.dim() == 1 else len(p))
    return torch.ops.llpf_fast._moments_device_blocking(p, d, table.segments, table.chunks, scratch)


@pytest.mark.parametrize(("dtype", "other"), PAIRS, ids=str)
@pytest.mark.parametrize("paths", [None, 2])
def test_agrees_with_the_specification(dtype: torch.dtype, other: torch.dtype, paths: int | None) -> None:
    lengths = [1, 2, 3, 15, 16, 17, 1023, 1024, 1025, 4095, 4096, 4097, 3 * 4096 + 5, 50]
    flags = [SegmentFlag.NONE] * 13 + [SegmentFlag.MASKED]
    table = SegmentTable.from_lengths(lengths, flags=flags, alignment=1)
    shape = (table.numel,) if paths is None else (paths, table.numel)
    p = (torch.randn(shape, dtype=torch.float64) + 3).to(dtype)
    d = torch.randn(shape, dtype=torch.float64).to(other)
    for destination in (d, d.reshape(-1)[: table.numel], None):
        with ops.use_backend("eager"):
            want = ops.moments(p, destination, table.segments, table.chunks, table.scratch(paths or 1))
        torch.testing.assert_close(blocked(p, destination, table), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_a_million_times_the_deviation(dtype: torch.dtype) -> None:
    table = SegmentTable.from_lengths([20_000])
    p = (1e6 + torch.randn(table.numel, dtype=torch.float64)).to(dtype)
    d = (p.double() * (1 + 1e-6)).to(dtype)
    with ops.use_backend("eager"):
        want = ops.moments(p, d, table.segments, table.chunks, table.scratch())
    torch.testing.assert_close(blocked(p, d, table), want, rtol=1e-9, atol=0)


def uneven(count: int, dtype: torch.dtype) -> Tensor:
    """Values of many magnitudes: the sums of similar float32 values would be exact in any order."""
    return (torch.randn(count) * torch.exp(5 * torch.randn(count))).to(dtype)


def fold(lanes: list[list[float]], join: Callable[[list[float], list[float]], list[float]]) -> list[float]:
    """Halves within each warp, then halves over the warps."""
    for width, step in ((WARP, 1), (LANES // WARP, WARP)):
        offset = width // 2
        while offset:
            for lane in range(0, LANES, step):
                if lane // step % width < offset:
                    lanes[lane] = join(lanes[lane], lanes[lane + offset * step])
            offset //= 2
    return lanes[0]


def chunk_moments(p: list[float], d: list[float], vector: int) -> list[float]:
    """Count and the five moments of one chunk, one Python float at a time."""
    shift_p, shift_delta = p[0], d[0] - p[0]
    lanes = [[0.0] * 5 for _ in range(LANES)]
    for i, (value, destination) in enumerate(zip(p, d, strict=True)):
        sums = lanes[i // vector % LANES]
        x, y = value - shift_p, (destination - value) - shift_delta
        for column, term in enumerate((x, y, x * x, x * y, y * y)):
            sums[column] += term
    x, y, xx, xy, yy = fold(lanes, lambda left, right: [a + b for a, b in zip(left, right, strict=True)])
    n = float(len(p))
    return [
        n,
        shift_p + x / n,
        shift_delta + y / n,
        max(0.0, xx - x * (x / n)),
        xy - x * (y / n),
        max(0.0, yy - y * (y / n)),
    ]


def chan(left: list[float], right: list[float]) -> list[float]:
    if left[0] == 0 or right[0] == 0:
        return left if right[0] == 0 else right
    n = left[0] + right[0]
    share = right[0] / n
    weight, gap_p, gap_delta = left[0] * share, right[1] - left[1], right[2] - left[2]
    return [
        n,
        left[1] + gap_p * share,
        left[2] + gap_delta * share,
        left[3] + right[3] + gap_p * gap_p * weight,
        left[4] + right[4] + gap_p * gap_delta * weight,
        left[5] + right[5] + gap_delta * gap_delta * weight,
    ]


@pytest.mark.parametrize(("dtype", "vector"), [(torch.float32, 4), (torch.float64, 2), (torch.bfloat16, 8)], ids=str)
def test_the_order_is_the_promised_one(dtype: torch.dtype, vector: int) -> None:
    """Bit for bit, with more chunks than lanes, so that a lane takes more than one of them."""
    table = SegmentTable.from_lengths([30 * LANES + 77], chunk=29)
    p, d = uneven(table.numel, dtype), uneven(table.numel, dtype)
    p_values, d_values = p.double().tolist(), d.double().tolist()
    lanes = [[0.0] * 6 for _ in range(LANES)]
    for i, (_, start, length) in enumerate(table.chunks.tolist()):
        part = slice(start, start + length)
        lanes[i % LANES] = chan(lanes[i % LANES], chunk_moments(p_values[part], d_values[part], vector))
    want = torch.tensor([fold(lanes, chan)[1:]], dtype=torch.float64)
    assert len(table.chunks) > LANES
    assert same_bits(blocked(p, d, table), want)


def test_the_order_within_a_chunk() -> None:
    """A chunk longer than one round of the block."""
    table = SegmentTable.from_lengths([3 * 4 * LANES + 5], chunk=1 << 20)
    p, d = uneven(table.numel, torch.float32), uneven(table.numel, torch.float32)
    length = table.rows[0].length
    want = chunk_moments(p[:length].double().tolist(), d[:length].double().tolist(), 4)[1:]
    assert same_bits(blocked(p, d, table), torch.tensor([want], dtype=torch.float64))
