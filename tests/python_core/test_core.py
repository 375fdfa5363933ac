"""``llpf_fast._core``: the CPU kernels for NumPy arrays and other buffers, without torch."""

from __future__ import annotations

import array
import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from llpf_fast import ops
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import backend

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
        buffer, left = np.zeros_like(p), np.zeros_like(m)
        tbuffer, tleft = torch_of(buffer), torch_of(left)
        lr = np.array(0.1)
        core.sgd_(p, g, buffer, lr, SEGMENTS, CHUNKS, d=d, moments_out=left, momentum=0.9, weight_decay=0.01)
        scratch = TABLE.scratch(paths or 1)
        rate = torch_of(lr)
        ops.sgd_(tp, tg, tbuffer, rate, *table, None, td, tleft, scratch, momentum=0.9, weight_decay=0.01)
        assert np.array_equal(p, tp.numpy())
        assert np.array_equal(buffer, tbuffer.numpy())
        assert np.array_equal(left, tleft.numpy())
        waypoint = np.zeros_like(p)
        twaypoint = torch_of(waypoint)
        core.tick_(p, d, SEGMENTS, CHUNKS, VARIANCE, STEP, moments_in=left, waypoint=waypoint, project_first=True)
        ops.tick_(tp, td, *table, *rule, moments_in=tleft, waypoint=twaypoint, project_first=True)
        assert np.array_equal(p, tp.numpy())
        assert np.array_equal(waypoint, twaypoint.numpy())


def test_loss_gate_takes_any_buffer() -> None:
    state = array.array("d", [1.0] + [0.0] * 5)
    want = ops.gate_state(2)
    for loss in (0.5, 0.3, 0.1):
        core.loss_gate_(state, array.array("f", [loss]), threshold=0.25, min_rounds=2, max_rounds=9)
        ops.loss_gate_(want, torch.tensor(loss), threshold=0.25, min_rounds=2, max_rounds=9)
        assert list(state) == want.tolist()
    core.loss_gate_(memoryview(state), np.float32([0.1]), threshold=0.25, min_rounds=2, max_rounds=9)
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
        (values(0)[::2], None, ValueError, r"p must be contiguous, got strides \[2\]"),
        (values(0).astype(np.int32), None, ValueError, "p must be float32, .* got buffer format i"),
        (
            torch.zeros(TABLE.numel, dtype=torch.int8),
            None,
            ValueError,
            "p must be float32, .* got DLPack type 0 of 8 bits",
        ),
        (values(0), values(1, np.float64), ValueError, r"d must be float32 .* got float64"),
        (values(0), values(1)[:-1], ValueError, r"d must be \[5328\] or \[5328\], got \[5327\]"),
        (np.zeros(16, np.float32), None, ValueError, "segments: a row leaves the buffer"),
        (np.array(3, np.float32), None, ValueError, r"p must be \[N\] or \[K, N\], got \[\]"),
        (read_only(), None, ValueError, "p is read-only"),
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
    assert names == ["affine_", "coefficients", "isa", "loss_gate_", "moments", "sgd_", "tick_"]
    assert all(len(getattr(core, name).__doc__) > 60 for name in names)
