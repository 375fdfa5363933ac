"""What bitwise repetition depends on besides the settings: recorded with a run, restored when it is resumed."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import torch

from .. import ops


def describe(device: torch.device, together: int = 1) -> dict[str, Any]:
    """Versions, hardware, thread count, kernels and instruction set of this process; how many paths it may stack."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "kernels": ops.kernels_in_use(device.type),
        **({"together": together} if together > 1 else {}),
    }


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def restore(recorded: dict[str, Any], device: torch.device, together: int = 1) -> None:
    """Set the thread count back; warn about every other difference, since the bits may then differ."""
    if recorded.get("threads"):
        torch.set_num_threads(int(recorded["threads"]))
    now = describe(device, together)
    recorded, now = {"together": 1, **recorded}, {"together": 1, **now}
    changed = [
        f"{key} was {recorded[key]!r}, is {now[key]!r}" for key in now if recorded.get(key, now[key]) != now[key]
    ]
    if changed:
        warnings.warn(
            "resuming in another environment, so the rest of the path need not be bit-identical to an "
            "uninterrupted run: " + "; ".join(changed),
            stacklevel=3,
        )
