"""relu_pool_bounds: no value is outside, whatever moves inside the form; the same bits from every implementation."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llpf_fast import ops
from llpf_fast.ops.relu_pool_bounds import Form, relu_pool_bounds_eager

from .examples import Arguments
from .oracle import Array, Real

pytestmark = pytest.mark.usefixtures("backend")

Window = dict[str, Any]
DTYPES = [torch.float32, torch.float64]
SLOPES = [0.0, 0.01, 0.3, 1.0]
#: Shapes and windows: rows as long as a register, shorter and longer; strides, padding, dilation, last windows cut off.
SHAPES: list[tuple[tuple[int, ...], Window]] = [
    ((2, 3, 8, 10), {"kernel": (2, 2), "stride": (2, 2)}),
    ((1, 2, 7, 67), {"kernel": (2, 2), "stride": (2, 2), "ceil_mode": True}),
    ((1, 2, 9, 39), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
    ((2, 1, 9, 36), {"kernel": (3, 2), "stride": (1, 1), "padding": (1, 1)}),
    ((2, 1, 11, 41), {"kernel": (2, 3), "stride": (3, 3), "padding": (1, 1), "dilation": (2, 1), "ceil_mode": True}),
    ((2, 1, 1, 19), {"kernel": (1, 4), "stride": (1, 2), "padding": (0, 2)}),
    ((1, 2, 3, 3), {"stride": (2, 2)}),
    ((3, 37), {}),
    ((21,), {}),
    ((), {}),
]
KINDS = ["usual", "many magnitudes", "whole", "subnormal", "huge", "nearly equal"]


def examples() -> list[Arguments]:
    window = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": False}
    images = {"left": torch.randn(2, 3, 5, 6), "right": torch.randn(2, 3, 5, 6), "radius": torch.rand(2, 3, 5, 6)}
    rows = {
        "left": torch.randn(4, 9).double(),
        "right": torch.randn(4, 9).double(),
        "radius": torch.rand(1, 9).double(),
    }
    return [images | {"slope": 0.0} | window, rows | {"slope": 0.1} | window | {"kernel": [1, 1], "stride": [1, 1]}]


def values(shape: tuple[int, ...], dtype: torch.dtype, kind: str, generator: torch.Generator) -> Tensor:
    value = torch.randn(shape, dtype=dtype, generator=generator)
    scale = torch.randint(-30, 30, shape, generator=generator)
    if kind == "many magnitudes":
        return value * 10.0**scale
    if kind == "whole":
        return (3 * value).round()
    if kind == "subnormal":
        return value * torch.finfo(dtype).tiny * 2.0 ** (scale // 10)
    if kind == "huge":
        return value * torch.finfo(dtype).max / 10
    return 1 + 1e-6 * value if kind == "nearly equal" else value


def form(shape: tuple[int, ...], dtype: torch.dtype, kind: str, seed: int) -> Form:
    generator = torch.Generator().manual_seed(seed)
    left = values(shape, dtype, kind, generator)
    right = left + values(shape, dtype, kind, generator) * 0.3
    radius = values(shape, dtype, kind, generator).abs() * 0.3
    return left, right, radius.round() if kind == "whole" else radius


def real(value: Tensor) -> Array:
    return value.double().numpy().astype(Real)


def pooled(value: Array, shape: torch.Size, window: Window) -> Array:
    """The maxima of windows, in the oracle's precision; by the positions that torch's own pooling names."""
    if "kernel" not in window and "stride" not in window:
        return value
    kernel, stride = window.get("kernel", (1, 1)), window.get("stride", (1, 1))
    padding, dilation = window.get("padding", (0, 0)), window.get("dilation", (1, 1))
    out = np.full(shape, -np.inf, dtype=Real)
    for y in range(shape[2]):
        for x in range(shape[3]):
            rows = [y * stride[0] - padding[0] + i * dilation[0] for i in range(kernel[0])]
            columns = [x * stride[1] - padding[1] + j * dilation[1] for j in range(kernel[1])]
            for row in rows:
                for column in columns:
                    if 0 <= row < value.shape[2] and 0 <= column < value.shape[3]:
                        out[:, :, y, x] = np.maximum(out[:, :, y, x], value[:, :, row, column])
    return out


def assert_encloses(given: Form, slope: float, window: Window, got: Form, seed: int) -> None:
    """Values anywhere in their radius, at ends, in the middle and at random points between."""
    random = np.random.default_rng(seed)
    left, right, radius = (real(value) for value in given)
    finite = got[2].isfinite().numpy()
    new_left, new_right, spread = (np.where(finite, real(value), 0) for value in got)
    for t in (-1.0, -0.5, 0.0, 1.0, *random.uniform(-1, 1, 3)):
        for sides in (np.ones(left.shape), -np.ones(left.shape), random.uniform(-1, 1, left.shape)):
            t = Real(t)
            value = pooled(((1 - t) * left + (1 + t) * right) / 2 + sides * radius, got[0].shape, window)
            value = np.where(value > 0, value, value * Real(slope))
            outside = ~(abs(value - ((1 - t) * new_left + (1 + t) * new_right) / 2) <= spread)
            assert not (outside & finite).any(), f"{int((outside & finite).sum())} values outside at t = {float(t)}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "window"), SHAPES[:3] + SHAPES[7:8])
def test_no_value_is_outside(shape: tuple[int, ...], window: Window, kind: str, dtype: torch.dtype) -> None:
    for seed, slope in enumerate(SLOPES):
        given = form(shape, dtype, kind, seed)
        got = ops.relu_pool_bounds(*given, slope, **window)
        assert_encloses(given, slope, window, got, seed)
        assert kind == "huge" or bool(got[2].isfinite().all())


def test_no_value_is_outside_where_subnormal_numbers_are_zero(backend: str) -> None:
    if backend == "triton" or not torch.set_flush_denormal(True):
        pytest.skip("the processor, or numpy in Triton's interpreter, does not flush subnormal numbers")
    try:
        for seed, slope in enumerate(SLOPES):
            torch.set_flush_denormal(False)
            given = form((2, 2, 8, 36), torch.float32, "subnormal", seed)
            window = {"kernel": (2, 2), "stride": (2, 2)}
            torch.set_flush_denormal(True)
            got = ops.relu_pool_bounds(*given, slope, **window)
            torch.set_flush_denormal(False)
            assert_encloses(given, slope, window, got, seed)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_every_implementation_gives_the_bits_of_the_specification(
    shape: tuple[int, ...], window: Window, dtype: torch.dtype
) -> None:
    whole = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False} | window
    for seed, kind in enumerate(KINDS):
        for slope in SLOPES:
            left, right, radius = form(shape, dtype, kind, seed)
            radii = [radius, radius[:1].clone()] if shape else [radius]
            for given in radii:
                got = ops.relu_pool_bounds(left, right, given, slope, **whole)
                want = relu_pool_bounds_eager(left, right, given, slope, **whole)
                finite = want[2].isfinite()
                assert torch.equal(got[2].isfinite(), finite)
                for one, other in zip(got, want, strict=True):
                    assert one.shape == other.shape
                    assert torch.equal(one[finite], other[finite])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize(("shape", "window"), SHAPES[:-1])
def test_values_that_do_not_move_are_those_of_torch(
    shape: tuple[int, ...], window: Window, slope: float, dtype: torch.dtype
) -> None:
    value = form(shape, dtype, "usual", 3)[0]
    left, right, radius = ops.relu_pool_bounds(value, value, torch.zeros_like(value), slope, **window)
    want = F.leaky_relu(value, slope)
    if window:
        options = {"kernel_size": (1, 1)} | {name.replace("kernel", "kernel_size"): of for name, of in window.items()}
        want = F.max_pool2d(want, **options)
    assert torch.equal(left, want)
    assert torch.equal(right, want)
    unit = torch.finfo(dtype).eps / 2
    assert bool((radius <= 8.001 * unit * want.abs() + 65 * torch.finfo(dtype).tiny).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_form_is_as_narrow_as_its_formula(dtype: torch.dtype) -> None:
    """A line from -1 to 3 bends by 3 / 4, two lines that cross in the middle by 1 / 2; a radius passes through."""
    unit = torch.finfo(dtype).eps

    def of(left: list[float], right: list[float], radius: list[float], slope: float) -> list[float]:
        tensors = (torch.tensor(value, dtype=dtype).reshape(1, 1, 1, -1) for value in (left, right, radius))
        return [float(value) for value in ops.relu_pool_bounds(*tensors, slope, kernel=(1, len(left)))]

    for got, want in (
        (of([-1.0], [3.0], [0.0], 0.0), [-0.375, 2.625, 0.375]),
        (of([-1.0], [3.0], [0.0], 0.5), [-0.5 - 0.1875, 3 - 0.1875, 0.1875]),
        (of([1.0, 2.0], [2.0, 1.0], [0.0, 0.0], 0.0), [1.75, 1.75, 0.25]),
        (of([2.0, -9.0], [3.0, -9.0], [0.25, 0.5], 0.0), [2.0, 3.0, 0.25]),
        (of([-3.0, -9.0], [-2.0, -9.0], [0.25, 0.5], 0.0), [0.0, 0.0, 0.0]),
        (of([-3.0], [-2.0], [1.0], 1.0), [-3.0, -2.0, 1.0]),
        (of([-1.0], [-1.0], [2.0], 0.0), [0.5, 0.5, 0.5]),
    ):
        assert got == pytest.approx(want, rel=0, abs=32 * unit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_line_that_hardly_rises_above_zero(dtype: torch.dtype) -> None:
    """The quotient of its ends is smaller than any number: the gap is the smaller end all the same."""
    far, near = -torch.finfo(dtype).max / 16, torch.finfo(dtype).tiny * 2.0**30
    line = (torch.tensor([value], dtype=dtype) for value in (far, near, 0.0))
    got = [float(value) / near for value in ops.relu_pool_bounds(*line, 0.0)]
    assert got == pytest.approx([-0.5, 0.5, 0.5], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("window", [{}, {"kernel": (2, 2), "stride": (2, 2)}])
def test_what_is_no_number_is_bounded_by_none(window: Window, slope: float, value: float) -> None:
    """Also in a cell that decides nothing: what it would be in exact arithmetic is not known."""
    for number in range(3):
        given = [torch.randn(1, 2, 4, 40), torch.randn(1, 2, 4, 40), torch.rand(1, 2, 4, 40)]
        clean = ops.relu_pool_bounds(*given, slope, **window)
        for tensor in given[:2]:
            tensor[0, 1, 2, 4] = -1e4
        given[number][0, 1, 2, 4] = value
        got = ops.relu_pool_bounds(*given, slope, **window)
        wrong = torch.zeros_like(got[2], dtype=torch.bool)
        wrong[(0, 1, 1, 2) if window else (0, 1, 2, 4)] = True
        assert torch.equal(got[2].isfinite(), ~wrong)
        assert all(torch.equal(one[~wrong], other[~wrong]) for one, other in zip(got, clean, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_is_no_finite_form(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for left, right, radius in (
        ([most], [-most], [0.0]),
        ([-most, most], [most, -most], [0.0, 0.0]),
        ([most], [most], [most]),
    ):
        tensors = [torch.tensor(value, dtype=dtype).reshape(1, 1, 1, -1) for value in (left, right, radius)]
        for slope in SLOPES:
            got = ops.relu_pool_bounds(*tensors, slope, kernel=(1, len(left)))
            assert_encloses((tensors[0], tensors[1], tensors[2]), slope, {"kernel": (1, len(left))}, got, 0)


def test_a_window_in_the_padding_is_bounded_by_none() -> None:
    """Two cells, one on either side of the only column."""
    column = torch.randn(1, 1, 5, 1)
    options = {"kernel": (1, 2), "stride": (1, 1), "padding": (0, 1), "dilation": (1, 2)}
    for slope in SLOPES:
        assert not bool(ops.relu_pool_bounds(column, column, column.abs(), slope, **options)[2].isfinite().any())


def test_tensors_without_elements() -> None:
    for shape, window, out in (
        ((0, 3, 4, 4), {"kernel": (2, 2), "stride": (2, 2)}, (0, 3, 2, 2)),
        ((2, 0, 4, 4), {"kernel": (2, 2), "stride": (2, 2)}, (2, 0, 2, 2)),
        ((0, 5), {}, (0, 5)),
        ((5, 0), {}, (5, 0)),
    ):
        empty = torch.zeros(shape)
        assert [value.shape for value in ops.relu_pool_bounds(empty, empty, empty, 0.0, **window)] == [out] * 3


@pytest.mark.many_elements
def test_any_number_of_threads() -> None:
    given = form((5, 16, 90, 91), torch.float32, "usual", 1)
    for window in ({}, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}):
        one = ops.relu_pool_bounds(*given, 0.1, **window)
        torch.set_num_threads(2)
        two = ops.relu_pool_bounds(*given, 0.1, **window)
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture
def guarded() -> Iterator[mmap.mmap]:
    """Memory before a page that may not be read."""
    memory = mmap.mmap(-1, 5 * mmap.PAGESIZE)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    last, size = ctypes.c_void_p(place + 4 * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE)
    assert libc.mprotect(last, size, 0) == 0
    yield memory
    assert libc.mprotect(last, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_behind_the_last_element(guarded: mmap.mmap, dtype: torch.dtype) -> None:
    end = 4 * mmap.PAGESIZE // dtype.itemsize
    memory = torch.frombuffer(guarded, dtype=dtype, count=end)
    for width in range(2, 70, 3):
        for window in (
            {},
            {"kernel": (2, 2), "stride": (2, 2)},
            {"kernel": (2, 2)},
            {"kernel": (1, 2), "stride": (1, 3)},
        ):
            given = memory[end - 3 * width :].view(1, 1, 3, width).fill_(1.0)
            result = ops.relu_pool_bounds(given, given, given, 0.0, **window)
            assert bool((result[2] >= 0.5).all())
