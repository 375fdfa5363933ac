"""Where a run happens: the repository made importable without installing it, the CUDA library, and what was used."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def make_importable() -> None:
    """``llpf_fast`` from this checkout, ``llpf_fast.kernels`` from its folder ``kernels`` (as the wheel has it)."""
    for place in (ROOT, ROOT / "tests/gpu"):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    if "llpf_fast.kernels" in sys.modules:
        return
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "llpf_fast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["llpf_fast.kernels"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:  # no triton: `why_not` says so where it matters
        del sys.modules["llpf_fast.kernels"]


def driver_present() -> bool:
    """Whether there is any sign of an NVIDIA driver; asked where there is no torch to ask."""
    return (
        Path("/proc/driver/nvidia").exists()
        or Path("/dev/nvidiactl").exists()
        or shutil.which("nvidia-smi") is not None
    )


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
        "commit": os.environ.get("LLPF_COMMIT") or output("git", "rev-parse", "HEAD") or "unknown",
        "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "sources": sources(),
    }
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
