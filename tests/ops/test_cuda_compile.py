"""What nvcc makes of the CUDA kernels: no spills, bounded registers, 16-byte accesses. Needs nvcc and no GPU."""

from __future__ import annotations

import re
from functools import cache

import pytest

from benchmarks.gpu import registers
from benchmarks.gpu.registers import Kernel

SOURCES = registers.CORE / "cuda"
#: Registers a thread at most. Of 65,536 a multiprocessor, 128 allow two blocks of 256 threads, 80 three, 64 four.
REGISTERS = {
    "solve_coefficients": 96,
    "tick_on_chip": 128,
    "update_chunks": 64,
    "update_gates": 32,
    "set_condition": 32,
    "randint_rows": 32,
}
OTHERS = 80
#: Instructions that the float32 kernel must contain at least so often: every run of every stream is one 16-byte access.
ACCESSES = {
    "chunk_moments": {"LDG.E.128": 8},
    "write_chunks": {"LDG.E.128": 8, "STG.E.128": 8},
    "tick_on_chip": {"LDG.E.128": 16, "STS.128": 16, "LDS.128": 10, "STG.E.128": 4},
    "update_chunks": {"LDG.E.128": 10, "STG.E.128": 3},
}


@cache
def compiled(op: str) -> list[Kernel]:
    try:
        return registers.compiled(op)
    except registers.MissingToolError as missing:
        pytest.skip(str(missing))


def count(sass: str, instruction: str) -> int:
    return len(re.findall(rf"\b{re.escape(instruction)}\b", sass))


def test_every_limit_is_of_a_kernel() -> None:
    text = "".join(path.read_text() for path in SOURCES.glob("*.cu"))
    assert [name for name in REGISTERS | ACCESSES if not re.search(rf"\b{name}\(", text)] == []


@pytest.mark.parametrize("op", sorted(path.stem for path in SOURCES.glob("*.cu")))
def test_kernels_fit_the_chip(op: str) -> None:
    kernels = compiled(op)
    assert kernels
    for one in kernels:
        label = f"{one.name} {one.types}"
        assert (one.spills, one.stack) == (0, 0), f"{label}: {one.spills} bytes spilled, {one.stack} bytes of stack"
        assert count(one.sass, "LDL") == count(one.sass, "STL") == 0, f"{label}: local memory"
        assert one.registers <= REGISTERS.get(one.name, OTHERS), f"{label}: {one.registers} registers"
        # A generic access asks at run time which memory is meant; the barrier of a grid has two, strong ones.
        generic = re.findall(r"\b(?:LD|ST)\.E\S*", one.sass)
        assert all("STRONG" in access for access in generic), f"{label}: {generic}"
        # The barrier of a cooperative grid is made of atomics.
        atomics = re.findall(r"\bATOM[GS]?\b|\bREDG?\b", one.sass)
        assert not atomics or one.name == "tick_on_chip", f"{label}: {atomics}, whose order is not fixed"
        if one.types in ("float, float", "float"):
            for instruction, least in ACCESSES.get(one.name, {}).items():
                times = count(one.sass, instruction)
                assert times >= least, f"{label}: {times} times {instruction}, expected {least}"


def test_loads_of_a_batch_are_in_flight_together() -> None:
    """Between the first and the last 16-byte load of the reduction there is no arithmetic that waits for one."""
    (one,) = [kernel for kernel in compiled("moments") if kernel.types == "float, float"]
    lines = [line for line in one.sass.splitlines() if re.search(r"\bLDG\.E\.128\b|\bDADD\b|\bF2F\b", line)]
    first = next(i for i, line in enumerate(lines) if "LDG.E.128" in line)
    assert all("LDG.E.128" in line for line in lines[first : first + 8])


def test_the_next_chunk_is_requested_before_this_one_is_joined() -> None:
    """Six loads of one chunk and six of the next, before anything waits for the first."""
    (one,) = [kernel for kernel in compiled("moments") if kernel.name == "segment_moments"]
    order = re.findall(r"LDG\.E\.64|I2F|MUFU\.RCP64H", one.sass)
    assert ["LDG.E.64"] * 12 in [order[i : i + 12] for i in range(len(order))]
