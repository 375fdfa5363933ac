"""``affine_``: the elementwise pass alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from llpf_fast import ops

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.problem import ALLOWED, Problem
from ..harness.sizes import parameters
from .tick import FLOPS_OF_MAP, segments, wanted


def prepare(size: str, device: torch.device, pool: int) -> Prepared:
    problem = Problem(size, torch.float32, torch.float32, device, pool)
    maps = problem.maps64(problem.p, problem.d)
    table = maps, problem.table.segments, problem.table.chunks
    calls = [partial(ops.affine_, values.p, values.d, *table) for values in problem.pool]
    got = partial(segments, problem, problem.p)
    error = lambda: wanted(problem, calls[0], got, flat=True)
    return Prepared({OURS: Contender(calls, error, ALLOWED[torch.float32])}, problem.streams())


def case(size: str, **given: Any) -> Case:
    n = parameters(size)
    return Case(
        op="affine_",
        size=size,
        parameters=n,
        dtype="float32",
        variant="",
        cost=Cost(touched=12 * n, read=0, triad=12 * n, flops=FLOPS_OF_MAP * n),
        prepare=partial(prepare, size),
        member_bytes=8 * n,
        memory=3 * 8 * n,
        **given,
    )


def cases() -> Iterator[Case]:
    yield case("LeNet5", caches=("warm", "cold"), threads=(1,))
    yield case("ResNet18", tier="quick")
    yield case("100M")
