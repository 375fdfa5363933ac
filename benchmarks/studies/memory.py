"""Peak memory of a tick of a billion parameters: before it and after it, as the operating system counts.

python -m benchmarks.studies.memory [--parameters 1000000000] [--out benchmarks/results/cpu/memory.json]
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import torch

from llpf_fast import ops
from llpf_fast.flat import SegmentTable
from llpf_fast.path.durable import write_bytes

from ..harness.environment import record

OUT = Path(__file__).parent / "results" / "cpu" / "memory.json"
SEGMENT = 1 << 22


def peak() -> int:
    """Bytes resident at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=1_000_000_000)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bare = peak()
    table = SegmentTable.from_lengths([SEGMENT] * -(-arguments.parameters // SEGMENT))
    p, d = torch.linspace(-1.0, 1.0, table.numel), torch.linspace(1.0, -1.0, table.numel)
    scratch, first = table.scratch(), float(p[0])
    target = torch.ones(len(table), dtype=torch.float64)
    step = torch.tensor([0.0, 0.1], dtype=torch.float64)
    before = peak()
    rule = {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
    ops.tick_(p, d, table.segments, table.chunks, target, step, scratch=scratch, **rule)
    after = peak()
    result = {
        "environment": record(torch.device("cpu")),
        "parameters": table.numel,
        "moved": float(p[0]) != first,
        "bytes": {"p and d": 8 * table.numel, "python and torch alone": bare, "before": before, "after": after},
        "share_added": (after - before) / (8 * table.numel),
    }
    write_bytes(arguments.out, (json.dumps(result, indent=1) + "\n").encode())
    print(
        f"{table.numel:,} parameters: resident at most {before / 1e9:.2f} GB before the tick, {after / 1e9:.2f} GB "
        f"after it, of which p and d are {8 * table.numel / 1e9:.2f}"
    )


if __name__ == "__main__":
    main()
