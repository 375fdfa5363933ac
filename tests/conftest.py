"""One thread, poisoned memory, repeatable property tests, and the implementations that this machine can run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

from llpf_fast.ops.backend import use_backend, why_not

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: Without hypothesis's explain phase: it takes minutes for an op and says what the failure's own message says.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],
}
#: The same examples on every run, so that a red run can be repeated; `--hypothesis-profile=fresh` looks for new ones.
settings.register_profile("ci", derandomize=True, max_examples=80, **_COMMON)
settings.register_profile("fresh", max_examples=400, **_COMMON)
settings.register_profile("interpreter", derandomize=True, max_examples=8, **_COMMON)
settings.load_profile("interpreter" if INTERPRETED else "ci")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "many_elements: more elements than Triton's interpreter gets through")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU that torch can use"))
        if "many_elements" in item.keywords and INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="too many elements for Triton's interpreter"))


def pytest_collection_finish() -> None:
    """What was imported and collected is for the whole session: a full collection of garbage need not look at it.

    It takes 0.3 s otherwise, and tests of what is given back ask for it.
    """
    gc.collect()
    gc.freeze()


def _not_to_disk(handle: int) -> None:
    os.fstat(handle)


#: fsync guards against power failures, which no test has; on a busy disk it took a fifth of a search's time. A handle
#: that is not open still fails, and processes that tests start call the real one.
os.fsync = _not_to_disk


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test starts on one thread (two on busy cores were measured ten times slower) and leaves it so."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        value = allocate(*args, **kwargs)
        if value.is_floating_point() and not torch.compiler.is_compiling():
            with torch.no_grad():
                value.fill_(torch.nan)
        return value

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that Python code asks for uninitialised is NaN, so that reading it before writing shows."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _poisoning(getattr(owner, name)))


@pytest.fixture
def poisoned_everywhere() -> Iterator[None]:
    """Uninitialised memory is NaN for compiled code too: torch's deterministic mode fills it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


#: `TRITON_INTERPRET=1 pytest tests/ops` puts the Triton kernels, in their interpreter, through the same tests.
BACKENDS = ("triton",) if INTERPRETED else ("eager", "cpp")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn, chosen through the public switch."""
    name: str = request.param
    reason = why_not(name, "cpu")
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    with use_backend(name):
        yield name
