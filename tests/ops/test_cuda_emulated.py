"""The CUDA kernels' code, run on a CPU: csrc/test/host_test.cpp, and csrc/test/gpu_test.cpp on the emulator."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "csrc/test"
CXX = os.environ.get("CXX", "g++")
#: No contraction: the bits are to be those of nvcc --fmad=false.
FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas")


def directory() -> Path:
    """Where this content of csrc is built; a second session finds the programs."""
    files = [
        path for path in sorted((ROOT / "csrc").rglob("*.*")) if path.suffix in (".h", ".cuh", ".cu", ".cpp", ".py")
    ]
    name = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    place = ROOT / "build/cuda_emulated" / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def run(command: Sequence[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
    return done.stdout


def build(program: Path, sources: Sequence[Path], *flags: str | Path) -> Path:
    if not program.exists():
        built = program.with_suffix(f".{os.getpid()}")
        run([CXX, *FLAGS, *flags, *sources, "-o", built])
        built.replace(program)
    return program


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler {CXX}")


def test_device_blocking_against_plain_sums() -> None:
    program = build(directory() / "host_test", [TESTS / "host_test.cpp"], "-O2", "-Wall", "-Wextra", "-Werror")
    assert " 0 failed" in run([program])


@pytest.fixture
def emulated() -> Path:
    place = directory()
    if not (place / "emulated").exists():
        for source in (ROOT / "csrc/core/cuda").glob("*.cu"):
            run([sys.executable, TESTS / "emulator/translate.py", source, place / f"{source.stem}.cpp"])
    translated = [place / f"{source.stem}.cpp" for source in (ROOT / "csrc/core/cuda").glob("*.cu")]
    return build(
        place / "emulated",
        [TESTS / "gpu_test.cpp", *translated],
        *(
            "-D__CUDACC__",
            "-DLLPF_GRID_Y=1",
            "-I",
            TESTS / "emulator",
            "-iquote",
            ROOT / "csrc/core/cuda",
            "-include",
            "cuda_runtime.h",
        ),
    )


@pytest.mark.parametrize(("lanes", "case"), [("up", "padded"), ("down", "long chunks"), ("down", "rows")])
def test_kernels_on_the_emulator(emulated: Path, lanes: str, case: str) -> None:
    """Bit for bit what the host computes, whichever lane of a block runs first between two barriers."""
    assert " 0 failed" in run([emulated, case], LLPF_LANES=lanes)


@pytest.mark.parametrize("lanes", ["up", "down"])
def test_the_repeated_iteration_on_the_emulator(emulated: Path, lanes: str) -> None:
    """As many iterations as the active asks for, in any order that the graph's dependencies allow."""
    assert " 0 failed" in run([emulated, "while"], LLPF_LANES=lanes)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", ["up", "down"])
def test_all_cases_on_the_emulator(emulated: Path, lanes: str) -> None:
    assert " 0 failed" in run([emulated], LLPF_LANES=lanes)
