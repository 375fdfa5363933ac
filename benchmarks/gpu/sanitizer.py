"""The torch-free test program (csrc/test/gpu_test.cpp, carried), alone or under a tool of compute-sanitizer."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .rows import Row, writer

#: What each tool is given: the program's argument chooses cases ("": all but graphs and long rows; "rows": these, which
#: join many chunks; "while": graphs alone). Alone, graphs come last. Racecheck is slow and looks at shared memory, of
#: which "rows" and one case see every use. Whether the tools follow conditional nodes is not known: they get no graphs.
ARGUMENTS = {
    "none": ["", "rows", "while"],
    "memcheck": ["rows", ""],
    "racecheck": ["rows", "padded"],
    "synccheck": ["rows", "padded"],
}
#: Seconds of one run without a tool: what never ends is a row, and the next run begins.
LONGEST = {"": 25.0, "rows": 10.0, "while": 10.0}
NO_GPU = 3


def cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: CUDA_HOME, the usual place, PATH."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home) / folder / name for home in homes if home for folder in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.exists()), shutil.which(name))


def one(program: Path, tool: str, argument: str) -> Row:
    """One run of the program: passed, failed with the end of what it said, or skipped and why."""
    checker = [] if tool == "none" else [cuda_tool("compute-sanitizer"), "--tool", tool]
    checker += ["--error-exitcode", "9", "--print-limit", "20"] if checker else []  # a log above 16 MiB stays there
    if checker and checker[0] is None:
        return {"result": "skipped", "why": "no compute-sanitizer here"}
    command = [*map(str, checker), str(program.resolve()), argument]
    limit = LONGEST.get(argument) if tool == "none" else None
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"result": "failed", "why": f"no end after {limit:g} s"}
    lines = done.stdout.strip().splitlines() or [f"status {done.returncode}, without a word"]
    said: Row = {"said": lines[-1][:300]}
    if done.returncode == NO_GPU and tool == "none":
        return {"result": "skipped", "why": lines[-1][:300]}
    # What compute-sanitizer says where the machine's runtime keeps it from the GPU (gVisor).
    if any("Device not supported" in line for line in lines):
        return said | {"result": "skipped", "why": "compute-sanitizer: device not supported here"}
    print(done.stdout)
    if done.returncode == 0:
        return said | {"result": "passed"}
    return said | {"result": "failed", "why": " | ".join(lines[-4:])[:800]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", required=True, type=Path)
    parser.add_argument("--tool", required=True, choices=ARGUMENTS)
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--to", required=True, type=Path, help="file that rows are appended to")
    given = parser.parse_args()
    emit = writer(given.to, "program", line)
    results = []
    for argument in ARGUMENTS[given.tool] if given.device == "cuda" else ["counter_randint"]:
        started = time.monotonic()
        row = {"tool": given.tool, "cases": argument or "all"} | one(given.program, given.tool, argument)
        emit(row | {"seconds": round(time.monotonic() - started, 1)})
        results.append(row["result"])
    # Without a GPU, or where the tool is kept from it, there is nothing that failed; alone on a GPU it must have run.
    allowed = ("passed",) if given.device == "cuda" and given.tool == "none" else ("passed", "skipped")
    return 0 if all(result in allowed for result in results) else 1


def line(row: Row) -> str:
    return f"program, {row['tool']}, {row['cases']}: {row['result']}: {row.get('why') or row.get('said')}"


if __name__ == "__main__":
    sys.exit(main())
