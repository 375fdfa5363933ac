"""Check and time the CUDA C++ and Triton kernels on an NVIDIA GPU: `make gpu-check`.

Needs python3 with torch >= 2.11, no network and no installation. A carried llpf_fast/_C_cuda.so is used, else nvcc
builds one. Every stage runs in a process of its own (a fault on the GPU ends the process it happens in), within its
share of --budget; what does not fit is skipped and named. After each stage results are written to OUT/gpu_check.json,
at the end OUT/gpu_check.md. docs/gpu.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu import environment, report

ROOT = environment.ROOT
#: Seconds a stage may take at most; what an earlier one leaves is not lost, the total is --budget.
SHARES = {"build": 150.0, "checks cuda": 200.0, "checks triton": 300.0, "timing": 120.0, "sanitizer": 150.0}
STAGES = ("checks", "timing", "sanitizer")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (default: %(default)g)")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/results/<gpu>)")
    parser.add_argument("--rebuild", action="store_true", help="build llpf_fast/_C_cuda.so even where there is one")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tests this program, not the GPU")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = set(given.stages.split(",")) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)}")
    return given


def work(given: argparse.Namespace) -> None:
    """One stage in this process; rows go to a file line by line, so that a killed stage keeps what it had."""
    environment.make_importable()
    deadline = time.monotonic() + given.budget
    with given.to.open("a") as file:

        def emit(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        if given.worker == "checks":
            from gpu import checks

            checks.run(given.backend, given.device, deadline, emit)
        elif given.worker == "timing":
            from gpu import timing

            timing.run(given.backend, given.device, deadline, given.only, emit)
        else:
            from gpu import sanitizer

            sanitizer.run(deadline, emit)


class Run:
    """The stages, one after another, and the file that they fill."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.started = given, time.monotonic()
        self.result: dict[str, Any] = {"environment": environment.record(given.device), "notes": []}
        name = environment.slug(self.result["environment"]["device"])
        self.out: Path | None = given.out or (ROOT / "benchmarks/results" / name if given.device == "cuda" else None)

    def left(self, stage: str) -> float:
        return min(SHARES[stage], self.given.budget - (time.monotonic() - self.started))

    def note(self, text: str) -> None:
        self.result["notes"].append(text)
        print(f"note: {text}", flush=True)

    def write(self) -> None:
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu_check.json").write_text(json.dumps(self.result, indent=1) + "\n")

    def build(self) -> None:
        """The CUDA library: carried, or built with this machine's nvcc."""
        library = ROOT / "llpf_fast/_C_cuda.so"
        if library.exists() and not self.given.rebuild and self.loads():
            return self.note("llpf_fast/_C_cuda.so was carried")
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        chosen = {"LLPF_CUDA": "1", "LLPF_CPP": "0", "MAX_JOBS": str(os.cpu_count() or 2)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | chosen, capture_output=True, text=True, timeout=self.left("build")
            )
        except subprocess.TimeoutExpired:
            return self.note("no CUDA C++: building took too long")
        if done.returncode == 0 and self.loads():
            return self.note("llpf_fast/_C_cuda.so was built here")
        self.note(f"no CUDA C++: {(done.stderr or done.stdout).strip()[-300:]}")

    def loads(self) -> bool:
        """Whether the library registers beside this torch; asked in another process, since loading cannot be undone."""
        script = "import torch, sys; torch.ops.load_library(sys.argv[1])"
        command = [sys.executable, "-c", script, str(ROOT / "llpf_fast/_C_cuda.so")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def stage(self, kind: str, share: str, backend: str = "", only: str = "", label: str = "", **env: str) -> None:
        """Run one worker and take over its rows."""
        seconds = self.left(share)
        what = " ".join(word for word in (kind, label or backend) if word)
        if seconds < 5:
            return self.note(f"{what}: skipped, no time left of {self.given.budget:g} s")
        with tempfile.TemporaryDirectory() as folder:
            rows_file = Path(folder) / "rows"
            rows_file.touch()
            command = [sys.executable, __file__, "--worker", kind, "--device", self.given.device, "--backend", backend]
            command += ["--only", only, "--to", str(rows_file), "--budget", str(0.9 * seconds)]
            try:
                done = subprocess.run(
                    command, env=os.environ | env, capture_output=True, text=True, timeout=seconds, check=False
                )
                if done.returncode != 0:
                    said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
                    self.note(f"{what}: the process ended with {done.returncode}: {said[:300]}")
            except subprocess.TimeoutExpired:
                self.note(f"{what}: stopped after {seconds:.0f} s")
            rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
        for row in rows:
            if label and "backend" in row:
                row["backend"] = label
            self.show(kind, row)
        self.result.setdefault(kind, []).extend(rows)
        self.write()

    @staticmethod
    def show(kind: str, row: dict[str, Any]) -> None:
        named = [str(row[key]) for key in ("check", "op", "table", "p", "d", "tool", "backend") if row.get(key)]
        if "copy_gb_per_s" in row:
            print(f"copy: {row['copy_gb_per_s']} GB/s", flush=True)
        elif row.get("result") == "timed":
            share = report.percent(row.get("share_of_copy"))
            print(f"{kind}: {' '.join(named)}: {row['cold_us']['median']} us cold, {share} of copy", flush=True)
        elif "result" in row:
            print(f"{kind}: {' '.join(named)}: {report.verdict(row)}", flush=True)

    def all(self) -> int:
        stages, cuda = self.given.stages.split(","), self.given.device == "cuda"
        backends = ("cuda", "triton") if cuda else ("cpp", "eager")
        if cuda:
            self.build()
        if "checks" in stages:
            for backend in backends:
                self.stage("checks", f"checks {backend}" if cuda else "checks cuda", backend)
        if "timing" in stages:
            for backend in backends:
                self.stage("timing", "timing", backend)
            if cuda:
                self.stage("timing", "timing", "cuda", "tick_", label="cuda in stages", LLPF_CUDA_TICK="stages")
        if "sanitizer" in stages and cuda:
            self.stage("sanitizer", "sanitizer")
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        self.write()
        table = report.markdown(self.result)
        print(table)
        if self.out is not None:
            (self.out / "gpu_check.md").write_text(table)
            print(f"written: {self.out}")
        rows = [row for kind in STAGES for row in self.result.get(kind, [])]
        bad = [row for row in rows if row.get("result") in ("failed", "wrong")]
        good = any(row.get("result") in ("passed", "timed") for row in rows)
        return 0 if good and not bad else 1


def main() -> int:
    given = arguments()
    if given.worker:
        work(given)
        return 0
    try:
        import torch
    except ImportError:
        missing = (
            f"no torch in {sys.executable}" if environment.driver_present() else "no NVIDIA GPU here, and no torch"
        )
        print(f"gpu_check: {missing}", file=sys.stderr)
        return 2
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: no NVIDIA GPU that torch can use here", file=sys.stderr)
        return 2
    return Run(given).all()


if __name__ == "__main__":
    sys.exit(main())
