"""Loads the compiled libraries and chooses which implementation of the ops runs.

The compiled libraries register their kernels for a device's dispatch key, so that the usual choice costs nothing. Any
other choice is an overriding Python registration for that key, which is destroyed to go back.
"""

from __future__ import annotations

import os
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import torch

from ..errors import LLPFError
from .library import EAGER

#: Backends of a device type, best first.
ORDER = {"cpu": ("cpp", "eager"), "cuda": ("cuda", "triton", "eager")}
NAMES = ("auto", "eager", "cpp", "cuda", "triton")
#: Instruction sets of the CPU kernels: LLPF_ISA names the widest that may be used.
INSTRUCTION_SETS = ("plain", "avx2", "avx512")

#: Compiled libraries by backend: the file, and why it is not loaded (``None``: it is).
FILES = {"cpp": Path(__file__).parent.parent / "_C.so", "cuda": Path(__file__).parent.parent / "_C_cuda.so"}
_failed: dict[str, str | None] = {}
_overrides: dict[str, torch.library.Library] = {}
_in_use: dict[str, str] = {}
_chosen = "auto"
_lock = threading.Lock()


def _load(name: str) -> str | None:
    """Load a compiled library. Returns why it cannot be loaded, or ``None``."""
    path, switch = FILES[name], {"cpp": "LLPF_CPP", "cuda": "LLPF_CUDA"}[name]
    if name == "cuda" and torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not path.exists():
        return f"{path.name} was not built (install with {switch}=1 to see why)"
    try:
        torch.ops.load_library(str(path))
    except Exception as error:  # a library of another torch fails in many ways
        return f"{path.name} does not load beside torch {torch.__version__}: {error.__cause__ or error}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(name: str, device: str) -> str | None:
    """Why backend ``name`` cannot run ops on tensors of device type ``device`` here, or ``None`` if it can."""
    if name == "eager":
        return None
    if name == "triton":
        if find_spec("triton") is None:
            return "triton is not installed"
        if device == "cpu":
            return None if _interpreted() else "Triton runs on CUDA tensors (on the CPU with TRITON_INTERPRET=1)"
    elif name not in ORDER.get(device, ()):
        return f"{name} has no kernels for {device} tensors"
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    return _failed.get(name)


def _best(device: str) -> str:
    return next(name for name in ORDER[device] if why_not(name, device) is None)


def _switch(device: str, name: str) -> None:
    if _in_use.get(device) == name:
        return
    previous = _overrides.pop(device, None)
    if previous is not None:
        previous._destroy()
    compiled = ORDER[device][0]
    if name != compiled:
        # Eager is registered already and needs an override only where a compiled library takes precedence.
        kernels = EAGER if _failed[compiled] is None else {}
        if name == "triton":
            from llpf_fast.kernels import KERNELS

            kernels = KERNELS
        library = torch.library.Library("llpf_fast", "IMPL")
        with warnings.catch_warnings():
            # Torch 2.11 warns that a kernel is overridden: that is the purpose.
            warnings.filterwarnings("ignore", message="(?s).*previously registered kernel", category=UserWarning)
            for op, kernel in kernels.items():
                library.impl(op, kernel, device.upper())
        _overrides[device] = library
    _in_use[device] = name


def _apply(name: str) -> None:
    """Make ``name`` the choice on every device type where it can run, and the best one elsewhere."""
    global _chosen
    if name not in NAMES:
        raise LLPFError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    devices = [device for device in ORDER if device == "cpu" or torch.cuda.is_available()]
    target = {device: _best(device) for device in devices}
    if name != "auto":
        able = [device for device in devices if why_not(name, device) is None]
        if not able:
            home = next(device for device in ORDER if name in ORDER[device])
            raise LLPFError(f"backend {name!r} is not available: {why_not(name, home)}")
        target |= dict.fromkeys(able, name)
    with _lock:
        for device, backend in target.items():
            _switch(device, backend)
        _chosen = name


class use_backend:  # noqa: N801  (called like a function)
    """Choose the implementation of the ops: ``use_backend("triton")``, or ``with use_backend("triton"):``.

    A call without ``with`` lasts until the next one; a ``with`` block restores the choice before it.
    The choice is the process's, not the thread's, and holds for graphs that ``torch.compile`` has already made.

    Args:
        name: "auto" (CUDA tensors: CUDA C++, Triton, eager; CPU tensors: C++, eager), "eager" (the readable
            specification), "cpp" (CPU tensors), "cuda" or "triton" (CUDA tensors; Triton also takes CPU tensors when
            TRITON_INTERPRET=1 is set). Device types without kernels of that name use their best backend.
            The environment variable LLPF_BACKEND sets the first choice of a process.

    Raises:
        LLPFError: an unknown name, or a backend that cannot run here; the message says why.
    """

    def __init__(self, name: str) -> None:
        self._previous = _chosen
        _apply(name)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _apply(self._previous)


def load_failure(name: str) -> str | None:
    """Why the compiled library of backend "cpp" or "cuda" is not loaded, or ``None`` if it is."""
    return _failed[name]


def chosen() -> str:
    """The name last chosen."""
    return _chosen


def in_use() -> dict[str, str]:
    """The backend of each device type."""
    return dict(_in_use)


def start() -> None:
    """Load the compiled libraries and choose the first backend, once all ops are defined."""
    named = os.environ.get("LLPF_ISA")
    if named and named not in INSTRUCTION_SETS:
        raise LLPFError(f"LLPF_ISA must be plain, avx2 or avx512, got {named!r}")
    _failed.update({name: _load(name) for name in FILES})
    _apply(os.environ.get("LLPF_BACKEND") or "auto")
