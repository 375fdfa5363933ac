"""``coefficients``: from moments to maps; no bytes to speak of, so its time is what counts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from llpf_fast import ops

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.problem import RULE, SPREAD, Problem
from ..harness.sizes import TABLES, parameters

#: Additions, multiplications, divisions and roots a segment, about.
FLOPS = 60
#: Relative to the map; c, a small difference, to a thousandth of the values.
ALLOWED = 1e-12


def prepare(size: str, device: torch.device, pool: int) -> Prepared:
    problem = Problem(size, torch.float32, torch.float32, device, 1)
    measured = problem.moments64(problem.p, problem.d)
    call = partial(ops.coefficients, measured, problem.table.segments, problem.target, problem.step, **RULE)
    want = problem.maps64(problem.p, problem.d)
    error = lambda: float(((call() - want).abs() / want.abs().clamp(min=SPREAD / 1024)).max())
    return Prepared({OURS: Contender([call], error, ALLOWED)})


def cases() -> Iterator[Case]:
    for size in ("LeNet5", "ResNet50"):
        count = len(TABLES[size]())
        yield Case(
            op="coefficients",
            size=size,
            parameters=parameters(size),
            dtype="float64",
            variant="",
            # Five moments, five columns of the table and a target in, five coefficients out; all of 8 bytes.
            cost=Cost(touched=8 * (16 * count + 2), read=0, triad=0, flops=FLOPS * count),
            prepare=partial(prepare, size),
            caches=("warm",),
            threads=(1,),
            member_bytes=1,
            memory=24 * parameters(size),
            tier="quick" if size == "LeNet5" else "usual",
        )
