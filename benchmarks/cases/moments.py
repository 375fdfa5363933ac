"""``moments``: the reduction pass alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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


def cases() -> Iterator[Case]:
    for size in ("LeNet5", "ResNet18", "100M"):
        n = parameters(size)
        yield Case(
            op="moments",
            size=size,
            parameters=n,
            dtype="float32",
            variant="",
            cost=Cost(touched=8 * n, read=8 * n, triad=0, flops=FLOPS_OF_MOMENTS * n),
            prepare=partial(prepare, size),
            caches=("warm", "cold") if size == "LeNet5" else ("cold",),
            threads=(1,) if size == "LeNet5" else (1, 2),
            member_bytes=8 * n,
            memory=3 * 8 * n,
            tier="quick" if size == "ResNet18" else "usual",
        )
