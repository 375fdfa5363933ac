"""Build steps.cpp with the flags of setup.py, run it in the cache and from memory, write kernel-steps.json.

python -m benchmarks.studies.kernel_steps [--out benchmarks/results/cpu/kernel-steps.json]
"""

from __future__ import annotations

import argparse
import json
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

from llpf_fast.path.durable import write_bytes

from ...harness.environment import load, record

SOURCE = Path(__file__).with_name("steps.cpp")
OUT = Path(__file__).parents[2] / "results" / "cpu" / "kernel-steps.json"
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-mavx2", "-mfma", "-mf16c")
#: Where the four buffers lie: elements, rounds, calls a round. 16 Ki are 256 KiB, half a Zen 3 core's second level.
PLACES = {"second-level cache": (1 << 14, 31, 100), "memory": (30_000_000, 11, 1)}


def summary(lines: Iterable[str]) -> dict[str, dict[str, float]]:
    """Nanoseconds an element by step: median and quartiles over the rounds."""
    found: dict[str, list[float]] = {}
    for line in lines:
        name, _, value = line.partition("\t")
        found.setdefault(name, []).append(float(value))
    out = {}
    for name, values in found.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        out[name] = {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}
    return out


def measure() -> dict[str, Any]:
    """Every step in every place, with the machine."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        sys.exit("kernel_steps: no C++ compiler found; install one or name it in CXX")
    environment = record(torch.device("cpu"))
    if "avx2" not in environment.get("kernels", "avx2"):
        sys.exit("kernel_steps: this processor has no AVX2; the steps are those of the AVX2 kernels")
    places = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "steps"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
        for place, numbers in PLACES.items():
            run = subprocess.run([program, *map(str, numbers)], check=True, capture_output=True, text=True)
            places[place] = {"elements": numbers[0], "ns_per_element": summary(run.stdout.splitlines())}
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return {"compiler": version, "environment": environment | {"load_after": load()}, "places": places}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    result = measure()
    write_bytes(out, (json.dumps(result, indent=1) + "\n").encode())
    for place, found in result["places"].items():
        print(place)
        for name, value in found["ns_per_element"].items():
            print(f"  {name:36s} {value['median']:.4f} ns ({value['low']:.4f} - {value['high']:.4f})")


if __name__ == "__main__":
    main()
