"""Stage three: the torch-free test program, alone and under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .environment import ROOT

BUILD = ROOT / "build/gpu_test"
FLAGS = (
    "-std=c++20",
    "-O2",
    "-lineinfo",
    "-arch=native",
    "--fmad=false",
    "-Xcompiler",
    "-ffp-contract=off",
)
#: Arguments after the tool's own. Racecheck is slow and looks at shared memory, of which one case sees every use.
#: Graphs run without a tool: whether these follow conditional nodes is not known, and "" leaves them out.
TOOLS = {"none": [], "memcheck": [""], "racecheck": ["padded"], "synccheck": ["padded"]}


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: CUDA_HOME, PATH, the usual place."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home) / folder / name for home in homes if home for folder in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.exists()), shutil.which(name))


def program(deadline: float) -> tuple[Path | None, str]:
    """The program, built here with nvcc or carried in ``build/``; else why there is none."""
    nvcc, target = tool("nvcc"), BUILD / "gpu_test"
    if nvcc is None:
        return (target, "carried") if target.exists() else (None, "no nvcc here and no build/gpu_test/gpu_test carried")
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [*(ROOT / "csrc/core/cuda").glob("*.cu"), ROOT / "csrc/test/gpu_test.cpp"]
    objects = [BUILD / f"{source.stem}.o" for source in sources]

    def compiled(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
        return _run([nvcc, *FLAGS, "-c", str(source), "-o", str(to)], deadline)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(compiled, sources, objects):
            if done.returncode != 0:
                return None, f"nvcc failed: {done.stderr.strip()[-300:]}"
    linked = _run([nvcc, *FLAGS, *map(str, objects), "-o", str(target)], deadline)
    return (
        (target, "built here") if linked.returncode == 0 else (None, f"linking failed: {linked.stderr.strip()[-300:]}")
    )


def _run(command: list[str], deadline: float) -> subprocess.CompletedProcess[str]:
    left = max(1.0, deadline - time.monotonic())
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "the stage's time was up")


def run(deadline: float, emit: Callable[[dict[str, Any]], None]) -> None:
    """Emit one row a tool: passed, failed with the end of what it said, or skipped and why."""
    binary, origin = program(deadline)
    sanitizer = tool("compute-sanitizer")
    for name, arguments in TOOLS.items():
        row: dict[str, Any] = {"tool": "the program alone" if name == "none" else f"compute-sanitizer {name}"}
        if binary is None:
            emit(row | {"result": "skipped", "why": origin})
        elif name != "none" and sanitizer is None:
            emit(row | {"result": "skipped", "why": "no compute-sanitizer here"})
        else:
            checker = [] if name == "none" else [str(sanitizer), "--tool", name, "--error-exitcode", "9"]
            started = time.monotonic()
            done = _run([*checker, str(binary), *arguments], deadline)
            said = (done.stdout + done.stderr).strip().splitlines() or [""]
            # What compute-sanitizer says where the machine's runtime keeps it from the GPU (gVisor).
            refused = any("Device not supported" in line for line in said)
            result = "skipped" if refused else {0: "passed", 124: "skipped"}.get(done.returncode, "failed")
            row |= {"result": result, "program": origin, "seconds": round(time.monotonic() - started, 1)}
            emit(row | {"said": said[-1][:300]} | ({} if result == "passed" else {"why": " | ".join(said[-4:])[:800]}))
