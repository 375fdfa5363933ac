"""The quick CPU cases under pytest-benchmark: ``pytest benchmarks``. Wrong results fail before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
import torch

from .cases import chosen
from .harness.case import OURS, Case, check
from .harness.environment import pool_members

_CASES = [(case, cache) for case in chosen("quick") for cache in case.caches]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "cache"), _CASES, ids=[f"{case.name}, {cache}" for case, cache in _CASES])
def test_case(benchmark: Any, case: Case, cache: str) -> None:
    pool = pool_members(case.member_bytes) if cache == "cold" else 1
    prepared = case.prepare(torch.device("cpu"), pool)
    prepared.contenders = {name: prepared.contenders[name] for name in prepared.time_of}
    check(prepared, case.name)
    turn = cycle(prepared.contenders[OURS].calls)
    benchmark.extra_info |= {"bytes": case.cost.touched, "flops": case.cost.flops}
    benchmark(lambda: next(turn)())
