"""``moments``: the reduction pass alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from llpf_fast import ops

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.problem import ALLOWED_OF_MOMENTS, Problem
from ..harness.sizes import parameters
from .tick import FLOPS_OF_MOMENTS


def prepare(size: str, device: torch.device, pool: int) -> Prepared:
    problem = Problem(size, torch.float32, torch.float32, device, pool)
    table = problem.table.segments, problem.table.chunks, problem.scratch
    calls = [partial(ops.moments, values.p, values.d, *table) for values in problem.pool]
    error = lambda: problem.moments_error(calls[0]())
    return Prepared({OURS: Contender(calls, error, ALLOWED_OF_MOMENTS)}, problem.streams())


def case(size: str, **given: Any) -> Case:
    n = parameters(size)
    return Case(
        op="moments",
        size=size,
        parameters=n,
        dtype="float32",
        variant="",
        cost=Cost(touched=8 * n, read=8 * n, triad=0, flops=FLOPS_OF_MOMENTS * n),
        prepare=partial(prepare, size),
        member_bytes=8 * n,
        memory=3 * 8 * n,
        **given,
    )


def cases() -> Iterator[Case]:
    yield case("LeNet5", caches=("warm", "cold"), threads=(1,))
    yield case("ResNet18", tier="quick")
    yield case("100M")
