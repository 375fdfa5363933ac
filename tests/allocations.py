"""What torch's CPU allocator did during a call, and which ops a call dispatched.

The allocator tells its profiler of every block, those that C++ kernels take included, so its own record is read here; a
TorchDispatchMode would see neither scratch inside a kernel nor when memory is given back. Only tensors count: Python
objects, compiled code and the profiler itself do not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Allocations:
    """``count`` blocks taken; the most bytes held at once, and those still held, beyond what was held before."""

    count: int
    peak: int
    left: int


def allocations(call: Callable[[], object]) -> Allocations:
    # What earlier calls left in cycles would be given back inside.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    results: Any = seen.profiler
    blocks = sorted((e.start_ns(), e.nbytes()) for e in results.kineto_results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, size in blocks:
        held += size
        peak = max(peak, held)
    return Allocations(sum(size > 0 for _, size in blocks), peak, held)


class Dispatched(TorchDispatchMode):
    """Names of the ops dispatched inside, in order; ``names`` without overload, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.name().partition("::")[2].partition(".")[0])
        return func(*args, **(kwargs or {}))
