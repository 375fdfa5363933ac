"""``counter_randint_``: indices and shifts of one batch; its time is a call's overhead and integer arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from llpf_fast import ops
from llpf_fast.batches.sampling import stream_key
from llpf_fast.ops.counter_randint import counter_randint_, counter_randint_eager

from ..harness.case import OURS, Case, Contender, Cost, Prepared

BATCH, WINDOW = 64, 20
#: Which of 60,000 images, and a shift of up to two pixels either way.
BOUNDS = (60_000, 5, 5)
#: Two mixes of six operations a number, a product and a shift.
FLOPS = 14


def prepare(device: torch.device, pool: int) -> Prepared:
    out = torch.zeros(len(BOUNDS), BATCH, dtype=torch.int64, device=device)
    key = torch.tensor(stream_key(0, 0), dtype=torch.int64, device=device)
    first = torch.tensor(1000, dtype=torch.int64, device=device)
    state = ops.gate_state(WINDOW, device=device)
    call = partial(counter_randint_, out, key, first, state, bounds=BOUNDS)

    def error() -> float:
        want = torch.zeros_like(out)
        counter_randint_eager(want, key, first, state, bounds=BOUNDS)
        call()
        return float((out - want).abs().max())

    return Prepared({OURS: Contender([call], error, 0.0)})


def cases() -> Iterator[Case]:
    yield Case(
        op="counter_randint_",
        size=f"batch of {BATCH}",
        parameters=0,
        dtype="int64",
        variant="",
        cost=Cost(touched=8 * len(BOUNDS) * BATCH, read=0, triad=0, flops=FLOPS * len(BOUNDS) * BATCH),
        prepare=prepare,
        caches=("warm",),
        threads=(1,),
        member_bytes=1,
        tier="quick",
    )
