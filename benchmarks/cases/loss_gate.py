"""``loss_gate_``: one decision; its time is a call's overhead."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from llpf_fast import ops
from llpf_fast.ops.loss_gate import loss_gate_eager

from ..harness.case import OURS, Case, Contender, Cost, Prepared

WINDOW = 20
RULE: dict[str, Any] = {"threshold": 0.0, "window": WINDOW, "max_steps": 1 << 40}


def prepare(device: torch.device, pool: int) -> Prepared:
    state = ops.gate_state(WINDOW, device=device)
    loss = torch.tensor(0.7, device=device)
    call = partial(ops.loss_gate_, state, loss, **RULE)

    def error() -> float:
        want = state.clone()
        loss_gate_eager(want, loss, **RULE)
        call()
        return float((state - want).abs().max())

    return Prepared({OURS: Contender([call], error, 0.0)})


def cases() -> Iterator[Case]:
    yield Case(
        op="loss_gate_",
        size="one path",
        parameters=0,
        dtype="float64",
        variant="",
        # Window and four columns in; open, last, rounds, mean and one loss out.
        cost=Cost(touched=8 * (WINDOW + 4 + 5) + 4, read=0, triad=0, flops=WINDOW + 2),
        prepare=prepare,
        caches=("warm",),
        threads=(1,),
        member_bytes=1,
        tier="quick",
    )
