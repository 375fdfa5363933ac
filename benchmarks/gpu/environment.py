"""Where a run happens: hardware, versions, and which sources were measured."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import platform
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .rows import writer

ROOT = Path(__file__).resolve().parents[2]


def output(*command: str | Path) -> str | None:
    """Standard output of a command, or ``None`` where it is missing or fails."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def sources() -> str:
    """Digest of what was measured; the copy of a working tree on a lent machine has no commit."""
    files = [
        path for name in ("csrc/core", "csrc/torch", "kernels", "llpf_fast/ops") for path in (ROOT / name).rglob("*")
    ]
    kept = sorted(path for path in files if path.suffix in (".h", ".cu", ".cuh", ".cpp", ".py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in kept)).hexdigest()[:12]


def commit() -> dict[str, Any]:
    """The commit and whether the tree differed from it: of git, else as pack.sh left it; None where it is not known."""
    head = output("git", "rev-parse", "HEAD")
    if head is not None:
        return {"commit": head, "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no"))}
    carried = ROOT / "build/carry/commit"
    if not carried.exists():
        return {"commit": "unknown", "changed": None}
    head, state = carried.read_text().split()
    return {"commit": head, "changed": {"changed": True, "unchanged": False}[state]}


def record(device: str) -> dict[str, Any]:
    """Hardware, versions and commit."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU: {processor()}",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device == "cuda"
        else None,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "python": platform.python_version(),
        "sources": sources(),
    } | commit()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["multiprocessors"] = properties.multi_processor_count
        found["l2_bytes"] = getattr(properties, "L2_cache_size", None)
    return found


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    named = re.search(r"model name\s*: (.*)", text)
    return named[1] if named else platform.machine()


def version_of(package: str) -> str | None:
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError:
        return None


def slug(name: str) -> str:
    """``NVIDIA H200`` -> ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--to", required=True, type=Path, help="file that the row is appended to")
    given = parser.parse_args()
    started = time.monotonic()
    found = record(given.device)
    emit = writer(given.to, "environment", lambda row: f"environment: {row}")
    emit(found | {"seconds": round(time.monotonic() - started, 1)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
