"""Principal components of 1,000 waypoints of ResNet18 (11.2 M parameters, 45 GB): how much memory, how long.

    python -m benchmarks.studies.pca_memory [--waypoints N] [--out DIR]

writes resnet18-memory.json to runs/studies/pca. The waypoints are hard links to 8 random states: memory, reading and
arithmetic are those of 1,000 states, and the disk holds 0.4 GB. Memory is the peak resident set (VmHWM) minus the
resident set before the analysis.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.studies.study import WORK, option_parser, parse, save
from llpf_fast.analysis.pca import MEMORY, principal_components
from llpf_fast.analysis.trajectory import Trajectory
from llpf_fast.cli.output import Progress
from llpf_fast.models import build_model
from llpf_fast.path import RunDirectory

DISTINCT = 8


def make_run(folder: Path, waypoints: int) -> RunDirectory:
    """A run of ``waypoints`` waypoints that share ``DISTINCT`` files."""
    run = RunDirectory.create(folder, {"settings": {"model": "resnet18", "data": "cifar10"}})
    start = build_model("resnet18", classes=10).state_dict()
    generator = torch.Generator().manual_seed(0)
    for number in range(min(DISTINCT, waypoints)):
        state = {
            name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in start.items()
        }
        run.add_waypoint(number, state)
    known = [json.loads(line) for line in (folder / "waypoints.jsonl").read_text().splitlines()]
    with open(folder / "waypoints.jsonl", "a") as index:
        for number in range(len(known), waypoints):
            same = known[number % len(known)]
            file = f"{number:06d}.safetensors"
            os.link(folder / "waypoints" / same["file"], folder / "waypoints" / file)
            index.write(json.dumps({**same, "index": number, "file": file, "tick": number}) + "\n")
    return RunDirectory.open(folder)


def peak() -> float:
    """Highest resident set of this process since the last reset, MB."""
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--waypoints", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=WORK / "pca")
    args = parse(parser)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        path = Trajectory(make_run(Path(folder, "run"), args.waypoints), build_model("resnet18", classes=10))
        size = sum(waypoint.path.stat().st_size for waypoint in path.waypoints)
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before, start = peak(), time.monotonic()
        with Progress("step") as progress:
            components = principal_components([path], progress=progress.update)
        seconds, grown = time.monotonic() - start, peak() - before
    print(f"{grown:.0f} MB, {seconds:.0f} s")
    save(
        args.out,
        "resnet18-memory",
        numbers={
            "waypoints": len(path),
            "parameters": path.size,
            "waypoints_gigabytes": size / 1e9,
            "block_megabytes": MEMORY / 2**20,
            "peak_megabytes_of_the_analysis": grown,
            "peak_megabytes_of_the_process": before + grown,
            "seconds": seconds,
            "explained": components.whole.explained.tolist(),
        },
        about={"distinct_states": min(DISTINCT, len(path))},
    )


if __name__ == "__main__":
    main()
