"""moments: centred sums that neither cancel nor depend on the threads, the path or what lies in padding."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import CHUNK, SegmentTable
from llpf_fast.ops import SegmentFlag

from . import oracle
from .comparison import exact, same_bits
from .examples import TABLE, Arguments, N, narrow, table
from .oracle import Array, Layer, Real
from .strategies import Case, cases

pytestmark = pytest.mark.usefixtures("backend")

SIZES = (1, 2, 15, 16, 17, 129, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3)
ROUNDOFF = Real(2) ** -53


def examples() -> list[Arguments]:
    full = {"p": torch.randn(N), "d": torch.randn(N), **table(), "scratch": TABLE.scratch()}
    return [full, full | {"d": None}, full | {"p": narrow(3), "d": narrow(3), "scratch": TABLE.scratch(3)}]


def run(case: Case, d: Tensor | None) -> Tensor:
    return ops.moments(case.p, d, case.table.segments, case.table.chunks, case.scratch())


def measure(p: Tensor, d: Tensor | None, table: SegmentTable) -> Tensor:
    return ops.moments(p, d, table.segments, table.chunks, table.scratch(1 if p.dim() == 1 else p.shape[0]))


def slack(p: Array, d: Array | None, layers: list[Layer]) -> Array:
    """``[S, 5]``: what float64 sums may be wrong by.

    A mean: 8 roundings of the largest value. A second moment: 16 roundings a term, each of (range)^2 plus range times
    the largest value (the means of two chunks carry their rounding into Chan's gap). A constant therefore has the
    moment 0 exactly, and p near d costs delta no digit.
    """
    out = np.zeros((len(layers), 5), dtype=Real)
    for i, layer in enumerate(layers):
        if layer.has(oracle.MASKED):
            continue
        x = layer.of(p)
        y = 0 * x if d is None else layer.of(d) - x
        wide, far = np.ptp(x), np.ptp(y)
        top, reach = abs(x).max(), abs(y).max()
        term = 16 * ROUNDOFF * len(x)
        out[i] = [8 * ROUNDOFF * top, 8 * ROUNDOFF * reach, 0, 0, 0]
        out[i, 2] = term * wide * (wide + top)
        out[i, 3] = term * (wide * (far + reach) + far * top)
        out[i, 4] = term * far * (far + reach)
    return out


def assert_moments(got: Tensor, p: Tensor, d: Tensor | None, layers: list[Layer]) -> None:
    """Compare ``[K?, S, 5]`` with the oracle, path by path."""
    assert got.dtype == torch.float64
    assert got.shape == (*p.shape[:-1], len(layers), 5)
    p_rows, d_rows = p.reshape(-1, p.shape[-1]), None if d is None else d.reshape(-1, p.shape[-1])
    for k, row in enumerate(got.reshape(-1, len(layers), 5)):
        x, y = exact(p_rows[k]), None if d_rows is None else exact(d_rows[k % len(d_rows)])
        error = abs(exact(row) - oracle.moments(x, y, layers))
        bound = slack(x, y, layers)
        assert (error <= bound).all(), f"path {k}: errors {error.astype(float)} beyond {bound.astype(float)}"
        assert bool((row[:, [2, 4]] >= 0).all())


@given(case=cases())
def test_equals_the_oracle(case: Case) -> None:
    before = case.p.clone()
    for d in (case.d, None):
        assert_moments(run(case, d), case.p, d, case.layers)
    assert same_bits(case.p, before)


@given(case=cases())
def test_repeats_bitwise_and_row_by_row(case: Case) -> None:
    got = run(case, case.d)
    assert same_bits(got, run(case, case.d))
    if case.p.dim() == 2:
        for k in range(case.paths):
            row = case.row(k)
            assert same_bits(got[k], run(row, row.d))


def integers(*columns: Tensor) -> tuple[list[list[int]], int]:
    """The values as integers over one common power of two."""
    ratios = [[v.as_integer_ratio() for v in column.double().tolist()] for column in columns]
    scale = max(below for column in ratios for _, below in column)
    return [[above * (scale // below) for above, below in column] for column in ratios], scale


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["normal", "far mean", "near d", "equal to d", "constant"])
def test_against_exact_integers(n: int, kind: str) -> None:
    """The reference has no rounding at all: big integers. Relative error 1e-12, or 1e-8 for the far mean."""
    generator = torch.Generator().manual_seed(n)
    p = torch.randn(n, generator=generator)
    d = torch.randn(n, generator=generator)
    if kind == "far mean":
        p = 1e3 + 1e-3 * p
    elif kind == "near d":
        d = p * (1 + 1e-6 * d)
    elif kind == "equal to d":
        d = p.clone()
    elif kind == "constant":
        p = torch.full((n,), 0.1)
    table = SegmentTable.from_lengths([n])
    pad = lambda values: torch.cat([values, torch.full((table.numel - n,), torch.nan)])
    got = measure(pad(p), pad(d), table)[0].tolist()

    (x, far), scale = integers(p, d)
    y = [b - a for a, b in zip(x, far, strict=True)]
    product = lambda a, b: (n * sum(i * j for i, j in zip(a, b, strict=True)) - sum(a) * sum(b)) / (n * scale * scale)
    want = [sum(x) / (n * scale), sum(y) / (n * scale), product(x, x), product(x, y), product(y, y)]
    relative = 1e-8 if kind == "far mean" else 1e-12
    size = [abs(p).double().mean(), abs(d - p).double().mean(), want[2], (want[2] * want[4]) ** 0.5, want[4]]
    for column in range(5):
        assert abs(got[column] - want[column]) <= relative * float(size[column])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.8, 4.2, 10.0, 1000.0])
def test_units_in_the_last_place(ratio: float, dtype: torch.dtype) -> None:
    """Second moments of one chunk against exact fractions, the mean so many deviations from zero: the number that
    csrc/core/cpu/chunk_kernels.h promises."""
    table = SegmentTable.from_lengths([CHUNK], alignment=1)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        p = (torch.randn(CHUNK, generator=generator, dtype=torch.float64) + ratio).to(dtype)
        d = torch.randn(CHUNK, generator=generator, dtype=torch.float64).to(dtype)
        x = [Fraction(value) for value in p.tolist()]
        y = [Fraction(far) - near for far, near in zip(d.tolist(), x, strict=True)]
        product = lambda a, b: sum(i * j for i, j in zip(a, b, strict=True)) - sum(a) * sum(b) / CHUNK
        want = [product(x, x), product(x, y), product(y, y)]
        unit = [math.ulp(float(v)) for v in (want[0], (want[0] * want[2]) ** 0.5, want[2])]
        got = measure(p, d, table)[0, 2:].tolist()
        errors = [float(abs(Fraction(g) - w)) / u for g, w, u in zip(got, want, unit, strict=True)]
        assert max(errors) <= 1024, errors


@pytest.mark.many_elements
def test_eleven_million_against_integers() -> None:
    """One huge segment whose mean is a million times its deviation: integers, so that int64 sums are exact."""
    n = 11_000_000
    table = SegmentTable.from_lengths([n])
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-2, 3, (n,), generator=generator) for _ in range(2))
    got = measure((x + 1_500_000).float(), (x + y + 1_500_000).float(), table)[0]
    sums = [int(v.sum()) for v in (x, y, x * x, x * y, y * y)]
    want = [
        1_500_000 + sums[0] / n,
        sums[1] / n,
        sums[2] - sums[0] ** 2 / n,
        sums[3] - sums[0] * sums[1] / n,
        sums[4] - sums[1] ** 2 / n,
    ]
    for column, size in enumerate((1_500_000.0, 1.0, want[2], want[2], want[4])):
        assert abs(got[column].item() - want[column]) <= 1e-11 * size


@pytest.mark.many_elements
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_thousands_of_one_element_segments(dtype: torch.dtype) -> None:
    table = SegmentTable.from_lengths([1] * 3000)
    p, d = torch.full((table.numel,), torch.nan, dtype=dtype), torch.full((table.numel,), torch.nan, dtype=dtype)
    at = table.segments[:, 0]
    p[at], d[at] = torch.randn(3000).to(dtype), torch.randn(3000).to(dtype)
    got = measure(p, d, table)
    assert torch.equal(got[:, 0], p[at].double())
    assert torch.equal(got[:, 1], d[at].double() - p[at].double())
    assert not got[:, 2:].any()


def test_float16_subnormals_count_where_the_processor_flushes_those_of_float32() -> None:
    halves = torch.arange(0x8000 - 0x400, dtype=torch.int32).to(torch.int16).view(torch.float16)
    table = SegmentTable.from_lengths([1] * len(halves))
    p = torch.zeros(table.numel, dtype=torch.float16)
    p[table.segments[:, 0]] = halves
    assert torch.set_flush_denormal(True)
    try:
        got = measure(p, None, table)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got[:, 0], halves.double())


def test_all_masked_and_no_segments() -> None:
    table = SegmentTable.from_lengths([5, 4097], flags=[SegmentFlag.MASKED] * 2)
    poison = torch.full((table.numel,), torch.nan)
    assert torch.equal(measure(poison, poison, table), torch.zeros(2, 5, dtype=torch.float64))
    assert measure(torch.randn(3, table.numel), None, table).shape == (3, 2, 5)
    nothing = SegmentTable((), 16)
    assert measure(torch.randn(16), None, nothing).shape == (0, 5)
    assert measure(torch.randn(2, 16), None, nothing).shape == (2, 0, 5)


@pytest.mark.many_elements
@pytest.mark.parametrize("paths", [None, 3])
def test_any_number_of_threads(paths: int | None) -> None:
    """Large enough that a threaded implementation splits it."""
    table = SegmentTable.from_lengths([600_003, 1, 17, 4097, 100_000])
    shape = (table.numel,) if paths is None else (paths, table.numel)
    p, d = torch.randn(shape), torch.randn(shape)
    one = measure(p, d, table)
    torch.set_num_threads(2)
    assert same_bits(measure(p, d, table), one)
    assert same_bits(measure(p, d, table), one)


@pytest.mark.usefixtures("poisoned_everywhere")
def test_uninitialised_memory_never_leaks() -> None:
    table = SegmentTable.from_lengths([3, 70, 4097], flags=[SegmentFlag.NONE, SegmentFlag.MASKED, SegmentFlag.NONE])
    p = torch.zeros(2, table.numel)
    assert bool(measure(p, p, table).isfinite().all())
    assert bool(measure(p, None, table).isfinite().all())
