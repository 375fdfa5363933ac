"""What is loaded in this process: implementations, versions, hardware."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import platform
from typing import Any

import torch

from . import backend


def info() -> dict[str, Any]:
    """What runs the ops in this process, as plain dictionaries: what ``llpf info`` prints.

    Keys: ``llpf_fast``, ``python``, ``torch`` (versions), ``gpu`` (device names), ``threads`` (torch's, which the CPU
    kernels use where there is enough work), ``backend`` (``chosen`` and the one in use for each device type),
    ``available`` (for each backend "yes", or why not), ``cpp`` and ``cuda`` (the file, what it was built with and, for
    the CPU, the instruction set in use) and ``core`` (the module for NumPy, or why it is missing).
    """
    return {
        "llpf_fast": _version(),
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "backend": {"chosen": backend.chosen(), **backend.in_use()},
        "available": {
            name: backend.why_not(name, "cuda" if name in ("cuda", "triton") else "cpu") or "yes"
            for name in backend.NAMES[1:]
        },
        "cpp": _library("cpp"),
        "cuda": _library("cuda"),
        "core": _core(),
    }


def kernels_in_use(device: str) -> str:
    """What runs ops on tensors of a device type, for the record of a run: "eager", "cuda", "cpp avx2", ...

    Runs with equal records on equal processors give the same bits.
    """
    name = backend.in_use().get(device, "eager")
    if name == "cpp":
        return f"cpp {_text(ctypes.CDLL(str(backend.FILES['cpp'])), 'llpf_cpu_isa')}"
    return name


def _version() -> str:
    try:
        return importlib.metadata.version("llpf_fast")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _library(name: str) -> dict[str, str]:
    path, reason = backend.FILES[name], backend.load_failure(name)
    if reason is not None:
        return {"loaded": f"no: {reason}"}
    library = ctypes.CDLL(str(path))
    built, running = _text(library, "llpf_build"), f"torch {torch.__version__}"
    details = {"loaded": str(path), "built with": built, "running on": running}
    if name == "cpp":
        details["instruction set"] = _text(library, "llpf_cpu_isa")
    return details


def _text(library: ctypes.CDLL, function: str) -> str:
    try:
        call = getattr(library, function)
    except AttributeError:
        return "unknown"
    call.restype = ctypes.c_char_p
    text = call()
    return "unknown" if text is None else bytes(text).decode()


def _core() -> str:
    try:
        core = importlib.import_module("llpf_fast._core")
    except ImportError as error:
        return f"no: {error}"
    return str(core.__file__)


def describe(device: torch.device, together: int = 1) -> dict[str, Any]:
    """Versions, hardware, thread count, kernels and instruction set of this process; how many paths it may stack."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "kernels": kernels_in_use(device.type),
        **({"together": together} if together > 1 else {}),
    }


def processor_name() -> str:
    """The processor's name by /proc/cpuinfo, else by `platform`."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
