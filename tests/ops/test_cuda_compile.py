"""What nvcc makes of the CUDA kernels: no spills, bounded registers, 16-byte accesses. Needs nvcc and no GPU."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc/core/cuda"
#: Compiled once per content of csrc/core: the objects outlive a test session.
CACHE = ROOT / "build/cuda_compile"
FLAGS = ("-std=c++20", "-O3", "-arch=sm_90", "--fmad=false", "-cubin", "-Xptxas", "-v")

#: Registers a thread at most. Of 65,536 a multiprocessor, 128 allow two blocks of 256 threads, 80 three, 64 four.
REGISTERS = {
    "moments": {"chunk_moments": 80, "segment_moments": 64},
    "coefficients": {"solve_coefficients": 96},
    "affine": {"write_chunks": 80},
    "tick": {"tick_coefficients": 80, "tick_on_chip": 128},
    "sgd": {"update_chunks": 128},
    "loss_gate": {"update_gates": 32},
    "while_graph": {"set_condition": 32},
    "draw": {"draw_rows": 32},
}
#: Instructions that the float32 kernel must contain at least so often: every run of every stream is one 16-byte access.
ACCESSES = {
    "chunk_moments": {"LDG.E.128": 8},
    "write_chunks": {"LDG.E.128": 8, "STG.E.128": 8},
    "tick_on_chip": {"LDG.E.128": 16, "STS.128": 2, "STG.E.128": 4},
    "update_chunks": {"LDG.E.128": 8, "STG.E.128": 2},
}


@dataclass
class Kernel:
    name: str
    types: str
    registers: int
    stack: int
    spills: int
    sass: str


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin/nvcc").exists():
        return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc")


def cuobjdump() -> str | None:
    triton = find_spec("triton")
    beside = [Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"] if triton and triton.origin else []
    return next((str(path) for path in beside if path.exists()), shutil.which("cuobjdump"))


@cache
def digest() -> str:
    files = [path for path in sorted((ROOT / "csrc/core").rglob("*.*")) if path.suffix in (".h", ".cuh", ".cu")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files) + repr(FLAGS).encode()).hexdigest()[:16]


@cache
def compiled(op: str) -> list[Kernel]:
    compiler, disassembler = nvcc(), cuobjdump()
    if compiler is None:
        pytest.skip("no nvcc: set CUDA_HOME or put it on PATH")
    if disassembler is None:
        pytest.skip("no cuobjdump: it comes with triton's package")
    cubin, log = CACHE / digest() / f"{op}.cubin", CACHE / digest() / f"{op}.log"
    if not (cubin.exists() and log.exists()):
        cubin.parent.mkdir(parents=True, exist_ok=True)
        fresh = cubin.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, str(SOURCES / f"{op}.cu"), "-o", str(fresh)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        log.write_text(run.stderr)
        fresh.replace(cubin)
    sass = subprocess.run([disassembler, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function :|\Z)", sass, re.DOTALL))
    return [kernel(block, code) for block in log.read_text().split("Compiling entry function ")[1:]]


def kernel(report: str, code: dict[str, str]) -> Kernel:
    symbol = report.split("'")[1]
    name = next(name for names in REGISTERS.values() for name in names if name in symbol)
    types = symbol.split(name, 1)[1].split("EEv")[0].removeprefix("I")  # "ff": p and d float, as the symbol spells it
    numbers = {key: int(re.search(rf"(\d+) {key}", report)[1]) for key in ("bytes stack frame", "registers")}  # type: ignore[index]
    spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", report))
    return Kernel(name, types, numbers["registers"], numbers["bytes stack frame"], spills, code[symbol])


def count(sass: str, instruction: str) -> int:
    return len(re.findall(rf"\b{re.escape(instruction)}\b", sass))


def test_every_source_is_listed() -> None:
    assert {path.stem for path in SOURCES.glob("*.cu")} == set(REGISTERS)


@pytest.mark.parametrize("op", REGISTERS)
def test_kernels_fit_the_chip(op: str) -> None:
    kernels = compiled(op)
    assert {kernel.name for kernel in kernels} == set(REGISTERS[op])
    for one in kernels:
        label = f"{one.name} {one.types}"
        assert (one.spills, one.stack) == (0, 0), f"{label}: {one.spills} bytes spilled, {one.stack} bytes of stack"
        assert count(one.sass, "LDL") == count(one.sass, "STL") == 0, f"{label}: local memory"
        assert one.registers <= REGISTERS[op][one.name], f"{label}: {one.registers} registers"
        # The barrier of a cooperative grid is made of atomics; BAR.RED is __syncthreads_count.
        atomics = re.findall(r"\bATOM[GS]?\b|(?<!BAR\.)\bREDG?\b", one.sass)
        assert not atomics or one.name == "tick_on_chip", f"{label}: {atomics}, whose order is not fixed"
        if one.types == "ff":
            for instruction, least in ACCESSES[one.name].items():
                found = count(one.sass, instruction)
                assert found >= least, f"{label}: {found} times {instruction}, expected {least}"


def test_loads_of_a_batch_are_in_flight_together() -> None:
    """Between the first and the last 16-byte load of the reduction there is no arithmetic that waits for one."""
    (one,) = [kernel for kernel in compiled("moments") if kernel.types == "ff"]
    lines = [line for line in one.sass.splitlines() if re.search(r"\bLDG\.E\.128\b|\bDADD\b|\bF2F\b", line)]
    first = next(i for i, line in enumerate(lines) if "LDG.E.128" in line)
    assert all("LDG.E.128" in line for line in lines[first : first + 8])
