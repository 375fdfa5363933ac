"""affine_: a p + b d + c, nothing outside, nothing lost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import CHUNK, SegmentTable
from llpf_fast.ops import SegmentFlag
from llpf_fast.ops.affine import affine_eager

from . import oracle
from .comparison import assert_within, compute_type, eager_bound, exact, poison, same_bits, unit, worst_error
from .examples import F64, Arguments, N, S, narrow, table
from .oracle import Real
from .strategies import Case, cases

SIZES = (1, 2, 15, 16, 17, 129, CHUNK - 1, CHUNK, CHUNK + 1)


def examples() -> list[Arguments]:
    maps = torch.rand(S, 5, dtype=F64)
    full = {"p": torch.randn(N), "d": torch.randn(N), "coefficients": maps, **table()}
    return [full, full | {"d": None}, full | {"p": narrow(3), "d": narrow(3), "coefficients": maps.repeat(3, 1, 1)}]


def random_maps(case: Case, seed: int) -> Tensor:
    """float64 ``[K?, S, 5]`` with identities and zeros strewn in."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(*case.p.shape[:-1], len(case.layers), 5, dtype=torch.float64, generator=generator)
    kind = torch.randint(0, 5, maps.shape[:-1], generator=generator)
    maps[kind == 0] = torch.tensor([1.0, 0.0, 0.0, 7.0, 7.0], dtype=torch.float64)
    maps[..., 1][kind == 1] = 0.0
    maps[..., 2][kind == 2] = 0.0
    return maps


def run(case: Case, maps: Tensor, d: Tensor | None) -> Tensor:
    x = case.p.clone()
    ops.affine_(x, d, maps, case.table.segments, case.table.chunks)
    return x


@given(case=cases(), seed=st.integers(0, 2**32 - 1), with_d=st.booleans())
def test_equals_the_formula(case: Case, seed: int, with_d: bool, backend: str) -> None:
    maps, d = random_maps(case, seed), case.d if with_d else None
    x = run(case, maps, d).reshape(case.paths, -1)
    precise = compute_type(case.p.dtype)
    eager = case.p.to(precise, copy=True)
    toward = None if d is None else d if case.p.dtype == precise else d.to(precise)
    affine_eager(eager, toward, maps, case.table.segments, case.table.chunks)
    eager, before = eager.reshape(x.shape), case.p.reshape(x.shape)
    outside = ~case.covered()
    for k in range(case.paths):
        assert same_bits(x[k, outside], before[k, outside])
        for i, layer in enumerate(case.layers):
            a, b, c = exact(maps.reshape(case.paths, -1, 5)[k, i])[:3]
            part = slice(layer.offset, layer.offset + layer.length)
            if layer.has(oracle.MASKED) or (a, b, c) == (1, 0, 0):
                assert same_bits(x[k, part], before[k, part])
                continue
            p = exact(before[k, part])
            far = 0 * p if d is None else exact(d.reshape(-1, x.shape[1])[k % (d.numel() // x.shape[1])][part])
            want, size = a * p + b * far + c, abs(a * p) + abs(b * far) + abs(c)
            assume(bool((size < torch.finfo(case.p.dtype).max / 4).all()))
            if backend == "eager":
                bound = eager_bound(size, case.p.dtype)
            else:
                eager_error = worst_error(eager[k, part], want, size, precise)
                bound = 2 * eager_error * unit(size, precise) + unit(size, case.p.dtype)
            assert_within(x[k, part], want, bound)


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
@pytest.mark.usefixtures("backend")
def test_repeats_bitwise_and_row_by_row(case: Case, seed: int) -> None:
    maps = random_maps(case, seed)
    x = run(case, maps, case.d)
    assert same_bits(x, run(case, maps, case.d))
    if case.p.dim() == 2:
        for k in range(case.paths):
            row = case.row(k)
            assert same_bits(x[k], run(row, maps[k].clone(), row.d))


@pytest.mark.many_elements
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_to_nearest_even(dtype: torch.dtype, backend: str) -> None:
    """Every 16-bit pattern: the float32 arithmetic's value, stored as torch stores it; infinities and NaN included."""
    if backend == "triton":
        pytest.skip("Triton's interpreter truncates float32 to bfloat16; tests/gpu checks the rounding")
    n = 1 << 16
    table = SegmentTable.from_lengths([n])
    p = torch.arange(n, dtype=torch.int32).to(torch.int16).view(dtype)
    d = p.flip(0).clone()
    maps = torch.tensor([[0.3, 0.7, 1e-3, 1.0, 0.0]], dtype=torch.float64)
    x = p.clone()
    ops.affine_(x, d, maps, table.segments, table.chunks)
    a, b, c = maps[0, :3].float()
    want = (a * p.float() + b * d.float() + c).to(dtype)
    assert torch.equal(x.isnan(), want.isnan())
    differ = (x != want) & ~want.isnan()
    # Another order of the three float32 roundings moves few values across a rounding boundary, by one unit.
    assert int(differ.sum()) < n // 1000
    size = abs(exact(a * p.float())) + abs(exact(b * d.float()))
    at = differ.numpy()
    assert (abs(exact(x)[at] - exact(want)[at]) <= unit(size[at], dtype)).all()


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("inf"), 1e-45])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("backend")
def test_identity_and_masked_keep_every_bit(value: float, dtype: torch.dtype) -> None:
    table = SegmentTable.from_lengths([37, 4, 5], flags=[SegmentFlag.NONE, SegmentFlag.MASKED, SegmentFlag.NONE])
    p = torch.full((2, table.numel), value, dtype=dtype)
    if value != value:
        poison(p, torch.ones(table.numel, dtype=torch.bool))
    maps = torch.tensor([1.0, 0.0, 0.0, 3.0, 3.0], dtype=torch.float64).repeat(2, 3, 1)
    maps[:, 1] = 0.5
    for d in (None, torch.full_like(p, torch.nan), torch.full_like(p[0], torch.inf)):
        x = p.clone()
        ops.affine_(x, d, maps, table.segments, table.chunks)
        assert same_bits(x, p)


@pytest.mark.usefixtures("backend")
def test_d_is_not_read_where_b_is_zero() -> None:
    table = SegmentTable.from_lengths([33, 20])
    p, d = torch.randn(table.numel), torch.full((table.numel,), torch.nan)
    d[48:] = 1.0
    maps = torch.tensor([[0.5, 0.0, 0.25, 1, 0], [0.5, 2.0, 0.25, 1, 0]], dtype=torch.float64)
    x = p.clone()
    ops.affine_(x, d, maps, table.segments, table.chunks)
    assert torch.equal(x[:33], 0.5 * p[:33] + 0.25)
    assert torch.equal(x[48:68], (0.5 * p[48:68] + 2.0) + 0.25)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("backend")
def test_sizes_leave_padding_alone(n: int) -> None:
    """An exact map (every operation without rounding), so that the one answer is known to the bit."""
    table = SegmentTable.from_lengths([n, n])
    p, d = (torch.randint(-99, 99, (table.numel,)).float() for _ in range(2))
    inside = torch.zeros(table.numel, dtype=torch.bool)
    for row in table.rows:
        inside[row.offset : row.offset + n] = True
    poison(p, ~inside)
    poison(d, ~inside)
    maps = torch.tensor([[0.5, 2.0, -3.0, 1, 0], [2.0, 0.25, 5.0, 1, 0]], dtype=torch.float64)
    x = p.clone()
    ops.affine_(x, d, maps, table.segments, table.chunks)
    assert same_bits(x[~inside], p[~inside])
    for row, (a, b, c) in zip(table.rows, maps[:, :3].tolist(), strict=True):
        part = slice(row.offset, row.offset + n)
        assert torch.equal(x[part], a * p[part] + b * d[part] + c)


@pytest.mark.usefixtures("backend")
def test_d_may_be_p_itself() -> None:
    table = SegmentTable.from_lengths([5000])
    p = torch.randint(-99, 99, (2, table.numel)).float()
    maps = torch.tensor([[0.5, 2.0, 1.0, 1, 0]], dtype=torch.float64).repeat(2, 1, 1)
    x = p.clone()
    ops.affine_(x, x, maps, table.segments, table.chunks)
    assert torch.equal(x[:, :5000], (2.5 * p + 1.0)[:, :5000])


@pytest.mark.many_elements
@pytest.mark.parametrize("paths", [None, 3])
@pytest.mark.usefixtures("backend")
def test_any_number_of_threads(paths: int | None) -> None:
    table = SegmentTable.from_lengths([600_003, 1, 100_001])
    shape = (table.numel,) if paths is None else (paths, table.numel)
    p, d = torch.randn(shape), torch.randn(table.numel)
    maps = torch.randn(*shape[:-1], 3, 5, dtype=torch.float64)
    one, two = p.clone(), p.clone()
    ops.affine_(one, d, maps, table.segments, table.chunks)
    torch.set_num_threads(2)
    ops.affine_(two, d, maps, table.segments, table.chunks)
    assert same_bits(one, two)


@pytest.mark.many_elements
def test_the_bound_of_eager_is_reachable() -> None:
    """The bound is not so wide that it would hide a map rounded to bfloat16 or a forgotten term."""
    p, d = torch.randn(1000), torch.randn(1000)
    want, size = exact(p) * Real(0.3) + exact(d) * Real(0.7), abs(exact(p)) * Real(0.3) + abs(exact(d)) * Real(0.7)
    coarse = 0.3 * p + 0.7 * d.bfloat16().float()
    with pytest.raises(AssertionError, match="beyond their bound"):
        assert_within(coarse, want, eager_bound(size, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("a", "b", "c", "p", "d"),
    [
        (3e40, 0.0, 0.5, 2e-40, None),
        (3e40, 0.0, 0.5, 2e-40, 1.0),
        (1e40, 2e39, -0.25, 3e-40, 4e-40),
        (0.5, 1e41, 0.0, 1.0, 1e-41),
        (0.0, 1e-42, 0.0, 1.0, 6e4),
        (1e-42, 0.0, 0.0, 6e4, None),
        (1e9, 0.0, -7.5e38, 1e30, None),
        (2e40, 0.0, 1.0, 0.0, math.inf),
    ],
)
def test_a_map_that_float32_cannot_hold(
    dtype: torch.dtype, a: float, b: float, c: float, p: float, d: float | None, backend: str
) -> None:
    """Applied in float64; the other paths and segments keep the bits that they always have."""
    if backend == "triton" and dtype == torch.bfloat16 and (p < 1e-38 or (d or 1) < 1e-38):
        pytest.skip("Triton's interpreter misreads subnormal bfloat16")
    table = SegmentTable.from_lengths([37, 4097])
    maps = torch.tensor([[a, b, c, 1.0, 0.0], [0.75, 0.125, 0.5, 1.0, 0.0]], dtype=torch.float64)
    values = torch.full((table.numel,), 0.3)
    values[:37] = p * torch.linspace(0.5, 1.0, 37)
    values = values.to(dtype)
    far = None if d is None else torch.full_like(values, d)
    if far is not None:
        far[64 - 16 :] = 0.7
    want = a * values[:37].double() + c
    if far is not None and b != 0:
        want = want + b * far[:37].double()
    want = want.float().to(dtype)
    x = values.clone()
    ops.affine_(x, far, maps, table.segments, table.chunks)
    if dtype != torch.float16:
        assert bool(want.isfinite().all())
    # The order in which three float64 terms are summed may differ.
    torch.testing.assert_close(x[:37], want, rtol=2 * torch.finfo(dtype).eps, atol=0.0, equal_nan=True)
    both, other = torch.stack([values, values, values]), maps.clone()
    other[0] = other[1]
    ops.affine_(both, far, torch.stack([maps, other, maps]), table.segments, table.chunks)
    alone = values.clone()
    ops.affine_(alone, far, other, table.segments, table.chunks)
    assert same_bits(both[0], x)
    assert same_bits(both[1], alone)
    assert same_bits(both[2], x)
    assert same_bits(x[48:], alone[48:])
