"""Peak memory of a tick of a billion parameters, before and after, as the operating system counts.

python -m benchmarks.studies.memory [--parameters 1000000000] [--out benchmarks/results/cpu/memory.json]
"""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from benchmarks.harness.environment import record
from benchmarks.studies.study import CPU, option_parser, parse, save_json
from llpf_fast import ops
from llpf_fast.flat import SegmentTable

SEGMENT = 1 << 22


def peak() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--parameters", type=int, default=1_000_000_000)
    parser.add_argument("--out", type=Path, default=CPU / "memory.json")
    args = parse(parser)
    imports = peak()
    table = SegmentTable.from_lengths([SEGMENT] * -(-args.parameters // SEGMENT))
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
        "bytes": {"p and d": 8 * table.numel, "python and torch alone": imports, "before": before, "after": after},
        "share_added": (after - before) / (8 * table.numel),
    }
    save_json(args.out, result)
    print(
        f"{table.numel:,} parameters: peak {before / 1e9:.2f} GB before the tick, {after / 1e9:.2f} GB after it; "
        f"p and d are {8 * table.numel / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
