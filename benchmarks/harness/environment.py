"""Where a run happened: hardware, versions, commit, and how busy the machine was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from llpf_fast.ops.info import describe

from ..gpu import environment as gpu

ROOT = gpu.ROOT
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
#: Where the system does not tell: larger than most last-level caches.
_USUAL_CACHE = 32 << 20
#: A pool of inputs holds this many times the last-level cache, so that none of it is left when its turn comes again.
_POOL = 4


def cache_bytes() -> int:
    """The last-level cache."""
    sizes = [int(path.read_text().strip().removesuffix("K")) << 10 for path in _CACHES.glob("index*/size")]
    return max(sizes, default=_USUAL_CACHE)


def pool_members(member_bytes: int) -> int:
    """Members of a pool that is too large for the caches."""
    return max(1, -(-_POOL * cache_bytes() // member_bytes))


def available_bytes(device: torch.device) -> int:
    """Available memory: of the GPU, or of the machine without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def load() -> float:
    return round(os.getloadavg()[0], 2)


def record(device: torch.device) -> dict[str, Any]:
    """As plain values; ``load`` is the one-minute average before the first time is taken."""
    record = gpu.record(device.type) | describe(device)
    del record["threads"], record["device"]
    return record | {
        "processors": os.cpu_count(),
        "last_level_cache": cache_bytes(),
        "memory_available": available_bytes(device),
        "load_before": load(),
    }
