"""CUDA C++ and Triton on a GPU; the checks themselves are in gpu_checks.py."""

from __future__ import annotations

import gpu_checks
import pytest

from llpf_fast.ops.backend import why_not


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", gpu_checks.UNITS)
def test_backend(name: str, backend: str) -> None:
    reason = why_not(backend, "cuda")
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    gpu_checks.run_unit(name, backend, "cuda")
