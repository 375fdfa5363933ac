"""Stage one: the checks of tests/gpu with each backend, without pytest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def run(backend: str, device: str, deadline: float, emit: Callable[[dict[str, Any]], None]) -> None:
    """Emit one result a check: passed, failed (with the first line of why), not here, or skipped for time."""
    import gpu_checks
    import torch

    from llpf_fast.ops.backend import why_not

    reason = why_not(backend, device)
    for name in gpu_checks.CHECKS:
        row: dict[str, Any] = {"check": name, "backend": backend}
        started = time.monotonic()
        if reason is not None:
            row |= {"result": "skipped", "why": reason}
        elif started > deadline:
            row |= {"result": "skipped", "why": "the stage's time was up"}
        else:
            try:
                gpu_checks.run_check(name, backend, torch.device(device))
                row["result"] = "passed"
            except gpu_checks.NotHere as here:
                row |= {"result": "not here", "why": str(here)}
            except Exception as error:  # whatever a backend raises is the finding
                row |= {"result": "failed", "why": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
        row["seconds"] = round(time.monotonic() - started, 2)
        emit(row)
    if device == "cuda" and reason is None and time.monotonic() < deadline:
        from llpf_fast.ops.backend import use_backend

        with use_backend(backend):
            emit({"launches": gpu_checks.count_launches(torch.device(device)), "backend": backend})
