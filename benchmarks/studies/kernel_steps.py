"""Time the steps of the AVX2 kernels alone, in the cache and from memory: builds kernel_steps.cpp and runs it.

python -m benchmarks.studies.kernel_steps [--out benchmarks/results/cpu/kernel-steps.json]
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..harness.environment import load, record
from .study import CPU, option_parser, save_json

SOURCE = Path(__file__).with_name("kernel_steps.cpp")
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-mavx2", "-mfma", "-mf16c")
#: Where the four buffers are: elements, rounds, calls a round. 16 Ki are 256 KiB, half a Zen 3 core's second-level
#: cache.
LOCATIONS = {"second-level cache": (1 << 14, 31, 100), "memory": (30_000_000, 11, 1)}


def summary(lines: Iterable[str]) -> dict[str, dict[str, float]]:
    """Nanoseconds an element by step: median and quartiles over the rounds."""
    times: dict[str, list[float]] = {}
    for line in lines:
        name, _, value = line.partition("\t")
        times.setdefault(name, []).append(float(value))
    quartiles = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        quartiles[name] = {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}
    return quartiles


def measure() -> dict[str, Any]:
    """Times of every step at every location, with compiler and machine."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        sys.exit("kernel_steps: no C++ compiler found; install one or name it in CXX")
    environment = record(torch.device("cpu"))
    if environment["kernels"] not in ("cpp avx2", "cpp avx512"):
        sys.exit(f"kernel_steps: the steps are those of the AVX2 kernels; in use here: {environment['kernels']}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "steps"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
        for location, numbers in LOCATIONS.items():
            run = subprocess.run([program, *map(str, numbers)], check=True, capture_output=True, text=True)
            results[location] = {"elements": numbers[0], "ns_per_element": summary(run.stdout.splitlines())}
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return {"compiler": version, "environment": environment | {"load_after": load()}, "places": results}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--out", type=Path, default=CPU / "kernel-steps.json")
    out = parser.parse_args().out
    result = measure()
    save_json(out, result)
    for location, times in result["places"].items():
        print(location)
        for name, value in times["ns_per_element"].items():
            print(f"  {name:36s} {value['median']:.4f} ns ({value['low']:.4f} - {value['high']:.4f})")


if __name__ == "__main__":
    main()
