"""Registers, shared memory and spills of every CUDA kernel on sm_90, as ptxas assigns them. Needs nvcc and no GPU.

python -m benchmarks.gpu.registers --before COMMIT [--to benchmarks/results/registers.md]

COMMIT names the sources of the columns "before"; "after" is the working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "csrc/core"
OUT = ROOT / "benchmarks/results/registers.md"
#: Compiled once per content of csrc/core: the objects outlive a test session.
CACHE = ROOT / "build/cuda_compile"
FLAGS = ("-std=c++20", "-O3", "-arch=sm_90", "--fmad=false", "-cubin", "-Xptxas", "-v")
#: Of a multiprocessor of sm_90; registers are dealt out to a warp in units of 256.
REGISTERS, PARTS, UNIT, WARP = 65536, 4, 256, 32


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel; ``types`` are its template arguments, ``sass`` its instructions."""

    name: str
    types: str
    registers: int
    shared: int
    stack: int
    spills: int
    sass: str

    def warps(self) -> int:
        """Warps of a multiprocessor (64 at most) that have registers at once, a quarter in each of its parts."""
        return min(64, PARTS * (REGISTERS // PARTS // (-(-self.registers * WARP // UNIT) * UNIT)))


class MissingToolError(RuntimeError):
    """No nvcc, or no cuobjdump."""


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    beside = str(Path(home) / "bin/nvcc") if home and (Path(home) / "bin/nvcc").exists() else None
    found = beside or shutil.which("nvcc")
    if found is None:
        raise MissingToolError("no nvcc: set CUDA_HOME or put it on PATH")
    return found


def cuobjdump() -> str:
    triton = find_spec("triton")
    beside = [Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"] if triton and triton.origin else []
    found = next((str(path) for path in beside if path.exists()), shutil.which("cuobjdump"))
    if found is None:
        raise MissingToolError("no cuobjdump: it comes with triton's package")
    return found


def compiled(op: str, core: Path = CORE) -> list[Kernel]:
    """The kernels of ``core/cuda/<op>.cu``.

    Raises:
        MissingToolError: nvcc or cuobjdump is not here.
        RuntimeError: it does not compile.
    """
    compiler, disassembler = nvcc(), cuobjdump()
    files = [path for path in sorted(core.rglob("*.*")) if path.suffix in (".h", ".cuh", ".cu")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files) + repr(FLAGS).encode()).hexdigest()[:16]
    cubin, log = CACHE / digest / f"{op}.cubin", CACHE / digest / f"{op}.log"
    if not (cubin.exists() and log.exists()):
        cubin.parent.mkdir(parents=True, exist_ok=True)
        fresh = cubin.with_suffix(f".{os.getpid()}")
        log.write_text(_run(compiler, *FLAGS, str(core / f"cuda/{op}.cu"), "-o", str(fresh)).stderr)
        fresh.replace(cubin)
    sass = _run(disassembler, "-sass", str(cubin)).stdout
    code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function :|\Z)", sass, re.DOTALL))
    return [_kernel(block, code) for block in log.read_text().split("Compiling entry function ")[1:]]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} ended with {run.returncode}:\n{run.stderr}")
    return run


def _kernel(report: str, code: dict[str, str]) -> Kernel:
    symbol = report.split("'")[1]
    written = _run("c++filt", symbol).stdout.strip().replace("(anonymous namespace)", "anonymous")
    named = re.search(r"::(\w+)(?:<(.*)>)?$", written.split("(")[0])
    assert named is not None, f"c++filt gave {written!r} for {symbol}"

    def number(what: str) -> int:
        return sum(int(count) for count in re.findall(rf"(\d+) {what}", report))

    return Kernel(
        name=named[1],
        types=(named[2] or "").replace("llpf::", ""),
        registers=number("registers"),
        shared=number("bytes smem"),
        stack=number("bytes stack frame"),
        spills=number("bytes spill"),
        sass=code[symbol],
    )


def every(core: Path = CORE) -> dict[tuple[str, str], Kernel]:
    """All kernels by name and types."""
    ops = sorted(path.stem for path in (core / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda op: compiled(op, core), ops)
    return {(kernel.name, kernel.types): kernel for kernels in found for kernel in kernels}


def of_commit(commit: str) -> dict[tuple[str, str], Kernel]:
    """All kernels of a commit's sources."""
    archive = subprocess.run(["git", "archive", commit, "csrc/core"], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder)
        return every(Path(folder) / "csrc/core")


def table(before: dict[tuple[str, str], Kernel], after: dict[tuple[str, str], Kernel]) -> list[str]:
    """A row a kernel; a side that lacks it has a dash."""
    lines = [
        "| kernel | types | registers | after | warps | after | shared | after | spilled | after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, types in sorted(before.keys() | after.keys()):
        pair = [side.get((name, types)) for side in (before, after)]
        cells = [
            str(value(kernel)) if kernel else "–"
            for value in (lambda k: k.registers, Kernel.warps, lambda k: k.shared, lambda k: k.spills)
            for kernel in pair
        ]
        lines.append(f"| `{name}` | {types or '–'} | {' | '.join(cells)} |")
    return lines


def page(commit: str) -> str:
    """The whole file."""
    described = _run("git", "-C", str(ROOT), "rev-parse", "--short=12", commit).stdout.strip()
    version = re.search(r"V([\d.]+)", _run(nvcc(), "--version").stdout)
    text = [
        "# Registers of the CUDA kernels",
        "",
        f"Written by `python -m benchmarks.gpu.registers --before {described}`: nvcc {version[1] if version else '?'}, "
        f"`{' '.join(FLAGS[:4])}`, before: csrc/core of {described}, after: of the commit that this file came with.",
        "",
        "*warps*: of the 64 that a multiprocessor takes, those that its 65,536 registers are enough for (a block of "
        f"{8 * WARP} threads is 8 of them). *shared*: bytes a block, without the tile of `tick_on_chip`, whose size is "
        "chosen at the launch. *spilled*: bytes of stores and loads. Compiled, not run: no number here is of a GPU.",
        "",
        *table(of_commit(commit), every()),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--to", type=Path, default=OUT)
    arguments = parser.parse_args()
    text = page(arguments.before)
    arguments.to.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
