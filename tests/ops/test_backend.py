"""Which implementation runs: the switch, what it says where it cannot, what the compiled one promises besides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llpf_fast import ops
from llpf_fast.errors import LLPFError
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import backend
from llpf_fast.ops.library import EAGER

from .comparison import same_bits

needs_cpp = pytest.mark.skipif(backend.why_not("cpp", "cpu") is not None, reason="_C is not built")

TABLE = SegmentTable.from_lengths([5000, 7, 300], distance_groups=[0, 0, 1])
#: Made here, not in the function that is traced: dynamo cannot trace the suite's poisoned torch.empty.
SCRATCH = TABLE.scratch()


@pytest.fixture(autouse=True)
def first_choice() -> Iterator[None]:
    yield
    backend.use_backend(os.environ.get("LLPF_BACKEND") or "auto")


def moments(p: Tensor | None = None) -> Tensor:
    p = torch.linspace(-1, 1, TABLE.numel) if p is None else p
    return ops.moments(p, p.flip(-1), TABLE.segments, TABLE.chunks, SCRATCH)


def calls_of_eager(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ops whose eager kernel ran, from now on."""
    calls: list[str] = []

    def spied(name: str, kernel: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return kernel(*args, **kwargs)

        return call

    monkeypatch.setattr(backend, "EAGER", {name: spied(name, kernel) for name, kernel in EAGER.items()})
    return calls


def python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new process, since the first choice and the instruction set are made once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )


@needs_cpp
def test_the_switch_switches_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_eager(monkeypatch)
    ops.use_backend("cpp")
    moments()
    assert calls == []
    with ops.use_backend("eager"):
        moments()
        assert calls == ["moments"]
        with ops.use_backend("cpp"):
            moments()
            assert calls == ["moments"]
        moments()
        assert calls == ["moments"] * 2
    moments()
    assert calls == ["moments"] * 2


@needs_cpp
def test_a_plain_call_lasts_and_an_error_ends_a_block() -> None:
    ops.use_backend("eager")
    assert backend.chosen() == "eager"
    assert backend.in_use()["cpu"] == "eager"
    with pytest.raises(KeyError), ops.use_backend("cpp"):
        raise KeyError
    assert backend.chosen() == "eager"
    assert ops.kernels_in_use("cpu") == "eager"
    ops.use_backend("auto")
    assert backend.in_use()["cpu"] == "cpp"
    assert ops.kernels_in_use("cpu").startswith("cpp ")


def test_unknown_and_unavailable_backends_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LLPFError, match=r"unknown backend 'fast': choose one of auto, eager, cpp, cuda, triton"):
        ops.use_backend("fast")
    before = backend.chosen(), backend.in_use()
    monkeypatch.setitem(backend._failed, "cpp", "_C.so was not built")
    with pytest.raises(LLPFError, match=r"backend 'cpp' is not available: _C\.so was not built"):
        ops.use_backend("cpp")
    if not torch.cuda.is_available():
        with pytest.raises(LLPFError, match="no CUDA device"):
            ops.use_backend("cuda")
        if os.environ.get("TRITON_INTERPRET") != "1":
            with pytest.raises(LLPFError, match="'triton' is not available"):
                ops.use_backend("triton")
    assert (backend.chosen(), backend.in_use()) == before


def test_a_library_that_is_missing_or_broken_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_C.so"
    monkeypatch.setitem(backend.FILES, "cpp", broken)
    assert "was not built" in str(backend._load("cpp"))
    broken.write_bytes(b"no library")
    assert f"does not load beside torch {torch.__version__}" in str(backend._load("cpp"))


def test_the_environment_makes_the_first_choice() -> None:
    say = "from llpf_fast.ops import backend; print(backend.chosen(), backend.in_use()['cpu'])"
    assert python(say, LLPF_BACKEND="eager").stdout.split() == ["eager", "eager"]
    refused = python(say, LLPF_BACKEND="fast")
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[-1].endswith(
        "unknown backend 'fast': choose one of auto, eager, cpp, cuda, triton"
    )


def test_switching_warns_of_nothing_and_imports_no_triton() -> None:
    code = (
        "import sys; from llpf_fast import ops\n"
        "for name in ('eager', 'auto', 'eager', 'auto'): ops.use_backend(name)\n"
        "print('llpf_fast.kernels' in sys.modules)"
    )
    done = python(code, "-W", "error::UserWarning")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip() == str(torch.cuda.is_available() and "cuda" not in backend.in_use().values())


@needs_cpp
def test_a_compiled_graph_follows_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_eager(monkeypatch)
    compiled = torch.compile(moments, backend="aot_eager", fullgraph=True)
    p = torch.randn(TABLE.numel)
    ops.use_backend("cpp")
    first = compiled(p)
    with ops.use_backend("eager"):
        second = compiled(p)
    assert calls == ["moments"]
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@needs_cpp
def test_opcheck_passes_behind_an_override() -> None:
    p = torch.randn(TABLE.numel)
    arguments = (p, p.flip(0), TABLE.segments, TABLE.chunks, SCRATCH)
    with ops.use_backend("eager"):
        torch.library.opcheck(torch.ops.llpf_fast.moments.default, arguments)
    torch.library.opcheck(torch.ops.llpf_fast.moments.default, arguments)


def test_info_is_text_about_everything() -> None:
    info = ops.info()
    assert info["backend"]["chosen"] == backend.chosen()
    assert set(info["available"]) == {"eager", "cpp", "cuda", "triton"}
    assert info["threads"] == torch.get_num_threads()
    for name in ("cpp", "cuda"):
        reason = backend.load_failure(name)
        if reason is None:
            assert info[name]["built with"].startswith("torch ")
            assert info[name]["running on"] == f"torch {torch.__version__}"
        else:
            assert info[name] == {"loaded": f"no: {reason}"}


# ---- what the compiled CPU kernels promise beyond the specification

#: Saves every result of seeded calls of each op: "values" where every instruction set has the same bits, "moments" and
#: other "sums" where those with a fused multiply-add have.
RESULTS = """
import os, sys, torch
from llpf_fast import ops
from llpf_fast.flat.table import SegmentTable
t = SegmentTable.from_lengths([5000, 7, 300, 1, 33], distance_groups=[0, 0, 1, 2, 2], variance_groups=[0, 1, 2, 3, 3])
where, f8 = (t.segments, t.chunks), torch.float64
print(ops.info()['cpp']['instruction set'], file=sys.stderr)
shown = []
def show(kind, *tensors):
    # NaN is NaN, whatever its sign.
    shown.extend((kind, torch.where(x.isnan(), torch.nan, x.double()).flatten()) for x in tensors)
for dtype, other in ((torch.float32,) * 2, (f8,) * 2, (torch.bfloat16,) * 2, (torch.float16,) * 2,
                   (torch.float32, torch.bfloat16), (torch.float32, torch.float16)):
    for mean in (0.0, 30.0):
        torch.manual_seed(0)
        p, d, g = (torch.randn(t.numel, dtype=f8) for _ in range(3))
        p, d, g = (p + mean).to(dtype), d.to(other), g.to(dtype)
        scratch, lr, target = t.scratch(), torch.tensor(.1, dtype=f8), torch.full((5,), .7, dtype=f8)
        step = torch.tensor([.01, .1], dtype=f8)
        m = ops.moments(p, d, *where, scratch)
        show('moments', m, ops.moments(p, None, *where, scratch))
        # Moments that every process has: only what is made of them is compared.
        with ops.use_backend('eager'): m = ops.moments(p, d, *where, scratch)
        for kind in ops.Destination:
            radius, far = torch.full((5,), .4, dtype=f8) if kind >= 4 else None, d if kind == 0 else None
            maps = ops.coefficients(m, t.segments, target, step, None, radius, destination=kind, project_first=True)
            x, w = p.clone(), torch.zeros_like(p)
            ops.tick_(x, far, *where, target, step, None, radius, m, w, destination=kind, project_first=True)
            show('values', maps, x, w)
            x = p.clone()
            ops.tick_(x, far, *where, target, step, None, radius, None, w, destination=kind, project_first=True)
            show('sums', x, w)
        maps = torch.tensor([[.9, .2, .01, 1, 0]] * 4 + [[3e40, 0, .5, 1, 0]], dtype=f8)
        ops.affine_(p, d, maps, *where)
        show('values', p)
        for rule in (dict(), dict(momentum=.9, weight_decay=.01, nesterov=True), dict(momentum=.5)):
            buffer = g.clone() if rule else None
            ops.sgd_(p, g, buffer, lr, *where, **rule)
            show('values', p, *([] if buffer is None else [buffer]))
state, drawn = ops.gate_state(3), torch.zeros(2, 40, dtype=torch.int64)
for loss in (.5, .25, float('nan'), .1):
    ops.loss_gate_(state, torch.tensor(loss), threshold=.2, window=3, max_steps=9)
    ops.counter_randint_(drawn, torch.tensor(3), torch.tensor(1), state, bounds=[1000, 7])
    show('values', state, drawn)
torch.save(shown, os.environ['SHOWN'])
"""


def results(isa: str, file: Path) -> tuple[str, list[tuple[str, Tensor]]]:
    done = python(RESULTS, LLPF_ISA=isa, LLPF_BACKEND="cpp", SHOWN=str(file))
    assert done.returncode == 0, done.stderr
    return done.stderr.strip(), torch.load(file)


@needs_cpp
def test_instruction_sets_agree(tmp_path: Path) -> None:
    """Of all that this processor has: elementwise ops bit for bit. Sums, and what comes of them, bit for bit among
    those that fuse multiply and add, and close to the plain loops, which do not.
    """
    by_set = dict(results(isa, tmp_path / isa) for isa in backend.INSTRUCTION_SETS)
    assert "plain" in by_set
    assert ops.kernels_in_use("cpu").removeprefix("cpp ") in by_set
    plain = by_set.pop("plain")
    assert {kind for kind, _ in plain} == {"values", "moments", "sums"}
    fused = list(by_set.values())
    for wide in fused:
        for (kind, ours), (_, theirs), (_, same) in zip(wide, plain, fused[0], strict=True):
            assert same_bits(ours, same)
            if kind == "values":
                assert same_bits(ours, theirs)
            elif kind == "moments":
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11, equal_nan=True)
            else:
                # Storage of 16 bits may round to the neighbour.
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("name", ["avx9", "AVX2"])
def test_an_unknown_instruction_set_is_one_line(name: str) -> None:
    done = python("from llpf_fast import ops", LLPF_ISA=name)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(f"LLPF_ISA must be plain, avx2 or avx512, got '{name}'")
    done = python("from llpf_fast.cli.main import main; raise SystemExit(main(['info']))", LLPF_ISA=name)
    assert done.returncode == 2
    assert done.stderr.startswith("llpf: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in ("LLPF_ISA", name, "avx512"))


@needs_cpp
def test_no_instruction_set_named_is_the_widest() -> None:
    say = "from llpf_fast import ops; print(ops.kernels_in_use('cpu'))"
    with ops.use_backend("cpp"):  # of a process in which none is named
        assert python(say, LLPF_ISA="", LLPF_BACKEND="cpp").stdout.strip() == ops.kernels_in_use("cpu")


@needs_cpp
@pytest.mark.parametrize("paths", [None, 1, 3])
def test_bits_do_not_depend_on_threads(paths: int | None) -> None:
    table = SegmentTable.from_lengths([700_000, 100, 900_000, 64], distance_groups=[0, 0, 1, 1])
    shape = (table.numel,) if paths is None else (paths, table.numel)
    p, d, g = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    variance = torch.rand(4, dtype=torch.float64)
    step, lr = torch.tensor([0.1, 0.1], dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    got = []
    with ops.use_backend("cpp"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, scratch = p.clone(), table.scratch(paths or 1).fill_(torch.nan)
            waypoint = torch.zeros_like(p)
            ops.sgd_(x, g, None, lr, table.segments, table.chunks)
            ops.tick_(x, d, table.segments, table.chunks, variance, step, waypoint=waypoint, scratch=scratch)
            got.append((x, waypoint, ops.moments(x, d, table.segments, table.chunks, scratch)))
    for other in got[1:]:
        assert all(same_bits(a, b) for a, b in zip(got[0], other, strict=True))


@needs_cpp
def test_unsorted_chunks_are_refused() -> None:
    p = torch.randn(TABLE.numel)
    with ops.use_backend("cpp"), pytest.raises((ValueError, RuntimeError), match=r"not sorted by segment \(row 3,"):
        ops.moments(p, p, TABLE.segments, TABLE.chunks[[0, 1, 3, 2]], TABLE.scratch())


@needs_cpp
@pytest.mark.parametrize(
    ("which", "row", "column", "value", "says"),
    [
        ("segments", 0, 0, -16, "a row leaves the buffer"),
        ("segments", 2, 1, 10**6, "a row leaves the buffer"),
        ("segments", 2, 1, 2**63 - 1, "a row leaves the buffer"),
        ("chunks", 0, 0, 3, "names no segment"),
        ("chunks", 0, 0, -1, "names no segment"),
        ("chunks", 1, 1, 4095, "overlap or are not in order"),
        ("chunks", 1, 1, 4097, "a row leaves its segment"),
        ("chunks", 1, 1, -4096, "a row leaves its segment"),
        ("chunks", 1, 2, 905, "a row leaves its segment"),
        ("chunks", 1, 2, -1, "a row leaves its segment"),
        ("chunks", 1, 2, 2**63 - 1, "a row leaves its segment"),
    ],
)
def test_a_wrong_table_is_refused_not_followed(which: str, row: int, column: int, value: int, says: str) -> None:
    tables = {"segments": TABLE.segments.clone(), "chunks": TABLE.chunks.clone()}
    tables[which][row, column] = value
    p = torch.randn(TABLE.numel)
    coefficients = torch.ones(3, 5, dtype=torch.float64)
    with ops.use_backend("cpp"):
        with pytest.raises((ValueError, RuntimeError), match=f"moments: {which}: .*{says}.*row {row}"):
            ops.moments(p, p, **tables, scratch=TABLE.scratch())
        with pytest.raises((ValueError, RuntimeError), match=f"affine_: {which}: "):
            ops.affine_(p, p.clone(), coefficients, **tables)
