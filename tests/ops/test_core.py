"""``llpf_fast._core``: the CPU kernels for NumPy arrays and other buffers, without torch."""

from __future__ import annotations

import array
import ctypes
import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from llpf_fast import ops
from llpf_fast.errors import LLPFError
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import backend
from llpf_fast.ops.library import EAGER

core: Any = pytest.importorskip("llpf_fast._core", reason="_core is not built")

TABLE = SegmentTable.from_lengths([5000, 7, 300], distance_groups=[0, 0, 1])
SEGMENTS, CHUNKS = TABLE.segments.numpy(), TABLE.chunks.numpy()
STEP = np.array([0.01, 0.1])
VARIANCE = np.array([0.5, 0.4, 0.3])


def values(seed: int, dtype: Any = np.float32, paths: int | None = None) -> np.ndarray[Any, Any]:
    shape = (TABLE.numel,) if paths is None else (paths, TABLE.numel)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def torch_of(x: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(x.copy())


@pytest.mark.skipif(backend.why_not("cpp", "cpu") is not None, reason="_C is not built")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("paths", [None, 2])
def test_has_the_bits_of_the_torch_ops(dtype: Any, paths: int | None) -> None:
    p, d, g = values(0, dtype, paths), values(1, dtype), values(2, dtype, paths)
    tp, td, tg = map(torch_of, (p, d, g))
    table = TABLE.segments, TABLE.chunks
    with ops.use_backend("cpp"):
        m = core.moments(p, d, SEGMENTS, CHUNKS)
        tm = ops.moments(tp, td, *table, TABLE.scratch(paths or 1))
        assert np.array_equal(m, tm.numpy())
        rule = torch_of(VARIANCE), torch_of(STEP)
        c = core.coefficients(m, SEGMENTS, VARIANCE, STEP, project_first=True)
        tc = ops.coefficients(tm, TABLE.segments, *rule, project_first=True)
        assert np.array_equal(c, tc.numpy())
        core.affine_(p, d, c, SEGMENTS, CHUNKS)
        ops.affine_(tp, td, tc, *table)
        assert np.array_equal(p, tp.numpy())
        buffer, lr = np.zeros_like(p), np.array(0.1)
        tbuffer, rate = torch_of(buffer), torch_of(lr)
        core.sgd_(p, g, buffer, lr, SEGMENTS, CHUNKS, momentum=0.9, weight_decay=0.01)
        ops.sgd_(tp, tg, tbuffer, rate, *table, momentum=0.9, weight_decay=0.01)
        assert np.array_equal(p, tp.numpy())
        assert np.array_equal(buffer, tbuffer.numpy())
        waypoint = np.zeros_like(p)
        twaypoint = torch_of(waypoint)
        core.tick_(p, d, SEGMENTS, CHUNKS, VARIANCE, STEP, moments_in=m, waypoint=waypoint, project_first=True)
        ops.tick_(tp, td, *table, *rule, moments_in=tm, waypoint=twaypoint, project_first=True)
        assert np.array_equal(p, tp.numpy())
        assert np.array_equal(waypoint, twaypoint.numpy())


def test_loss_gate_takes_any_buffer() -> None:
    state = array.array("d", [1.0] + [0.0] * 5)
    want = ops.gate_state(2)
    for loss in (0.5, 0.3, 0.1):
        core.loss_gate_(state, array.array("f", [loss]), threshold=0.25, window=2, max_steps=9)
        ops.loss_gate_(want, torch.tensor(loss), threshold=0.25, window=2, max_steps=9)
        assert list(state) == want.tolist()
    core.loss_gate_(memoryview(state), np.float32([0.1]), threshold=0.25, window=2, max_steps=9)
    assert list(state)[:2] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_takes_tensors_by_dlpack_and_writes_into_them(dtype: torch.dtype) -> None:
    p, d = torch.randn(TABLE.numel).to(dtype), torch.randn(TABLE.numel).to(dtype)
    want = p.clone()
    c = torch.tensor([[0.9, 0.1, 0.01, 1, 0]] * 3, dtype=torch.float64)
    core.affine_(p, d, c, TABLE.segments, TABLE.chunks)
    ops.affine_(want, d, c, TABLE.segments, TABLE.chunks)
    assert torch.equal(p, want)


def test_dlpack_memory_outlives_the_call_only() -> None:
    p = torch.randn(TABLE.numel)
    before = sys.getrefcount(p)
    for _ in range(50):
        core.moments(p, p, TABLE.segments, TABLE.chunks)
    gc.collect()
    assert sys.getrefcount(p) == before
    result = core.moments(values(0), None, SEGMENTS, CHUNKS)
    again = result.copy()
    gc.collect()
    assert np.array_equal(result, again)


def test_needs_no_torch() -> None:
    code = "import sys; from llpf_fast import _core; assert 'torch' not in sys.modules; print(_core.isa())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("plain", "avx2", "avx512")


def read_only() -> np.ndarray[Any, Any]:
    p = values(0)
    p.flags.writeable = False
    return p


@pytest.mark.parametrize(
    ("p", "d", "error", "says"),
    [
        ([1.0], None, TypeError, "p must offer the buffer protocol or DLPack on the CPU, got list"),
        (values(0)[::2], None, LLPFError, r"p must be contiguous, got strides \[2\]"),
        (values(0).astype(np.int32), None, LLPFError, "p must be float32, .* got buffer format i"),
        (
            torch.zeros(TABLE.numel, dtype=torch.int8),
            None,
            LLPFError,
            "p must be float32, .* got DLPack type 0 of 8 bits",
        ),
        (values(0), values(1, np.float64), LLPFError, r"d must be float32 .* got float64"),
        (values(0), values(1)[:-1], LLPFError, r"d must be \[5328\] or \[5328\], got \[5327\]"),
        (np.zeros(16, np.float32), None, LLPFError, "segments: a row leaves the buffer"),
        (np.array(3, np.float32), None, LLPFError, r"p must be \[N\] or \[K, N\], got \[\]"),
        (read_only(), None, LLPFError, "p is read-only"),
    ],
)
def test_refuses_by_name(p: Any, d: Any, error: type[Exception], says: str) -> None:
    c = np.ones((3, 5))
    with pytest.raises(error, match=says):
        core.affine_(p, d, c, SEGMENTS, CHUNKS)
    if "read-only" in says:
        core.moments(p, d, SEGMENTS, CHUNKS)
    else:
        with pytest.raises(error, match=says):
            core.moments(p, d, SEGMENTS, CHUNKS)


def test_refuses_a_partial_overlap() -> None:
    memory = np.zeros(TABLE.numel + 1, np.float32)
    with pytest.raises(ValueError, match="p and d overlap in memory"):
        core.affine_(memory[1:], memory[:-1], np.ones((3, 5)), SEGMENTS, CHUNKS)


def test_every_function_explains_itself() -> None:
    names = [name for name in dir(core) if not name.startswith("_")]
    assert {"affine_", "coefficients", "isa", "loss_gate_", "moments", "sgd_", "tick_"} <= set(names) <= {"isa", *EAGER}
    assert all(len(getattr(core, name).__doc__) > 60 for name in names)


class Formatted:
    """A buffer whose format carries a mark, as JAX ("=f") and ctypes ("<f") write them."""

    def __init__(self, data: np.ndarray[Any, Any], mark: str) -> None:
        kind = {"f": ctypes.c_float, "d": ctypes.c_double, "l": ctypes.c_int64}[data.dtype.char]
        kind = kind if mark == "<" else kind.__ctype_be__
        self.buffer = (kind * data.size).from_buffer_copy(data.tobytes())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_takes_formats_with_a_mark_of_this_byte_order(dtype: Any) -> None:
    p, d = values(0, dtype), values(1, dtype)
    want = p.copy()
    c = np.array([[0.9, 0.1, 0.01, 1, 0]] * 3)
    core.affine_(want, d, c, SEGMENTS, CHUNKS)
    marked, far = Formatted(p, "<").buffer, Formatted(d, "<").buffer
    assert memoryview(marked).format == f"<{np.dtype(dtype).char}"
    core.affine_(marked, far, c, SEGMENTS, CHUNKS)
    assert np.array_equal(np.frombuffer(marked, dtype), want)
    got = core.moments(memoryview(p.tobytes()).cast("B").cast(np.dtype(dtype).char), d, SEGMENTS, CHUNKS)
    assert np.array_equal(got, core.moments(p, d, SEGMENTS, CHUNKS))


@pytest.mark.parametrize("mark", ["@", "=", "<"])
def test_marks_by_the_format_alone(mark: str) -> None:
    """Formats that no library here writes, by way of a buffer written in C: the struct that pybind11 asks for."""
    p = values(0)
    want = core.moments(p, None, SEGMENTS, CHUNKS)

    class Buffer(ctypes.Structure):
        _fields_ = (("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
                    ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
                    ("format", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
                    ("strides", ctypes.POINTER(ctypes.c_ssize_t)), ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
                    ("internal", ctypes.c_void_p))  # fmt: skip

    shape, strides = (ctypes.c_ssize_t * 1)(p.size), (ctypes.c_ssize_t * 1)(4)
    view = Buffer(p.ctypes.data, None, p.nbytes, 4, 0, 1, f"{mark}f".encode(), shape, strides, None, None)
    make = ctypes.pythonapi.PyMemoryView_FromBuffer
    make.restype, make.argtypes = ctypes.py_object, [ctypes.POINTER(Buffer)]
    assert make(ctypes.byref(view)).format == f"{mark}f"
    assert np.array_equal(core.moments(make(ctypes.byref(view)), None, SEGMENTS, CHUNKS), want)


def test_refuses_the_other_byte_order() -> None:
    p = values(0)
    with pytest.raises(LLPFError, match=r"p must be float32, .* got buffer format >f"):
        core.moments(p.astype(">f4"), None, SEGMENTS, CHUNKS)
    with pytest.raises(LLPFError, match=r"p must be float32, .* got buffer format >f"):
        core.moments(Formatted(p, ">").buffer, None, SEGMENTS, CHUNKS)
    with pytest.raises(LLPFError, match=r"segments must be int64 .* got buffer format >[lq]"):
        core.moments(p, None, SEGMENTS.astype(">i8"), CHUNKS)


def test_refuses_what_is_not_aligned() -> None:
    """Two fields of three bytes apart, and a buffer from an odd byte on: neither is a row of numbers."""
    fields = np.zeros(TABLE.numel, np.dtype([("value", "f4"), ("rest", "u2")]))
    with pytest.raises(LLPFError, match="p must be aligned"):
        core.moments(fields["value"], None, SEGMENTS, CHUNKS)
    odd = np.frombuffer(bytearray(4 * TABLE.numel + 1), np.float32, offset=1, count=TABLE.numel)
    with pytest.raises(LLPFError, match="p must be aligned"):
        core.moments(odd, None, SEGMENTS, CHUNKS)


def test_writes_into_nothing_that_is_read_only() -> None:
    p, g, buffer = values(0), values(1), values(2)
    lr = np.array(0.1)
    for name, value in (("p", p), ("momentum_buffer", buffer)):
        value.flags.writeable = False
        with pytest.raises(LLPFError, match=f"{name} is read-only"):
            core.sgd_(p, g, buffer, lr, SEGMENTS, CHUNKS, momentum=0.9)
        value.flags.writeable = True
    waypoint, state = np.zeros_like(p), np.zeros(6)
    waypoint.flags.writeable = state.flags.writeable = False
    with pytest.raises(LLPFError, match="waypoint is read-only"):
        core.tick_(p, g, SEGMENTS, CHUNKS, VARIANCE, STEP, waypoint=waypoint)
    with pytest.raises(LLPFError, match="state is read-only"):
        core.loss_gate_(state, np.array(0.5), threshold=0.1, window=2, max_steps=3)


def test_refuses_what_the_torch_ops_refuse() -> None:
    p, d, one = values(0), values(1), np.ones(3)
    state = np.array([1.0, 0.0, np.nan, 0.0, 0.0, 0.0])
    with pytest.raises(LLPFError, match=r"loss_gate_: state of path 0: steps must be a whole number .* got nan"):
        core.loss_gate_(state, np.array(0.5), threshold=0.1, window=2, max_steps=3)
    with pytest.raises(LLPFError, match=r"tick_: target_variance\[1\] must be at least 0 and finite, got nan"):
        core.tick_(p, d, SEGMENTS, CHUNKS, np.array([1.0, np.nan, 1.0]), STEP)
    with pytest.raises(LLPFError, match="segments: a row is not covered by its chunks"):
        core.moments(p, d, SEGMENTS, CHUNKS[:-1])
    with pytest.raises(LLPFError, match="tick_: waypoint must not be p itself"):
        core.tick_(p, d, SEGMENTS, CHUNKS, one, STEP, waypoint=p)
    with pytest.raises(LLPFError, match="tick_: waypoint and d overlap in memory"):
        core.tick_(p, d, SEGMENTS, CHUNKS, one, STEP, waypoint=d)
    with pytest.raises(LLPFError, match="sgd_: p and momentum_buffer overlap in memory"):
        core.sgd_(p, d, p, np.array(0.1), SEGMENTS, CHUNKS, momentum=0.9)


def test_a_batch_of_no_paths_and_a_table_of_no_segments() -> None:
    none = np.zeros((0, TABLE.numel), np.float32)
    assert core.moments(none, None, SEGMENTS, CHUNKS).shape == (0, 3, 5)
    core.tick_(none, none.copy(), SEGMENTS, CHUNKS, VARIANCE, STEP)
    core.sgd_(none, none.copy(), None, np.array(0.1), SEGMENTS, CHUNKS)
    core.loss_gate_(np.zeros((0, 6)), np.zeros(0), threshold=0.1, window=2, max_steps=3)
    p = values(0)
    assert core.moments(p, None, SEGMENTS[:0], CHUNKS[:0]).shape == (0, 5)


def test_without_the_package_it_raises_value_error() -> None:
    code = (
        "import importlib.util, sys, numpy as np\n"
        f"spec = importlib.util.spec_from_file_location('_core', {core.__file__!r})\n"
        "sys.modules['llpf_fast.errors'] = None\n"
        "core = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
        "try: core.moments(np.zeros(3, np.int32), None, np.zeros((0, 5), np.int64), np.zeros((0, 3), np.int64))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ValueError moments: p must be float32")


def test_an_unknown_instruction_set_is_one_line() -> None:
    code = (
        "from llpf_fast import _core\n"
        "try: _core.isa()\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "LLPF_ISA": "avx9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "LLPFError LLPF_ISA must be plain, avx2 or avx512, got 'avx9'", done.stderr
