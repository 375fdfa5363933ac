"""Hardware counters of the kernels of tick_ (three stages), sgd_ and moments at 100 M parameters, by Nsight Compute."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path

from .rows import Row, writer
from .sanitizer import cuda_tool

#: Kernels of csrc/core/cuda, in the order in which `calls` queues them; chunk_moments is moments' and the tick's first.
KERNELS = "chunk_moments|segment_moments|tick_coefficients|write_chunks|update_chunks"
COUNT = 6
METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessor",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy",
    "launch__registers_per_thread": "registers",
}


def calls() -> None:
    """What is profiled: one call of each op."""
    import torch

    from ..cases import moments, sgd, tick

    for case in (moments.case("100M"), tick.case("100M"), sgd.case("100M")):
        case.prepare(torch.device("cuda"), 1).contenders["llpf_fast"].calls[0]()
        torch.cuda.synchronize()


def profiled() -> list[Row]:
    """One row a kernel, or one that says why there is none: some runtimes keep the tool from the GPU (gVisor)."""
    ncu = cuda_tool("ncu")
    if ncu is None:
        return [{"result": "skipped", "why": "no ncu here"}]
    # The clocks are the machine's: they are left alone.
    options = ["--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
    options += ["--kernel-name", f"regex:{KERNELS}", "--launch-count", str(COUNT)]
    done = subprocess.run(
        [ncu, *options, sys.executable, "-m", __spec__.name, "--calls"],
        env=os.environ | {"LLPF_CUDA_TICK": "stages"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    rows = table(done.stdout)
    if rows:
        return rows
    said = [text for text in (done.stdout + done.stderr).splitlines() if text.startswith("==ERROR==")]
    return [{"result": "skipped", "why": f"ncu, status {done.returncode}: {(said or ['without a word'])[0][:300]}"}]


def table(text: str) -> list[Row]:
    """ncu's CSV, a line a kernel and metric, as one row a kernel."""
    lines = text.splitlines()
    start = next((i for i, one in enumerate(lines) if one.startswith('"ID"')), len(lines))
    rows: dict[str, Row] = {}
    for found in csv.DictReader(lines[start:]):
        row = rows.setdefault(found["ID"], {"result": "profiled", "kernel": found["Kernel Name"].split("(")[0]})
        name = METRICS.get(found["Metric Name"])
        if name:
            row[name] = f"{found['Metric Value']} {found['Metric Unit']}".strip()
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", choices=("cuda",))
    parser.add_argument("--to", type=Path, help="file that rows are appended to")
    given = parser.parse_args()
    if given.calls:
        calls()
        return 0
    started = time.monotonic()
    rows = profiled()
    emit = writer(given.to, "counters", lambda row: f"counters: {row}")
    for row in rows:
        emit(row | {"seconds": round(time.monotonic() - started, 1)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
