"""``relu_pool_bounds``: what an enclosure does between two convolutions, beside the same formula in passes of torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from llpf_fast import ops
from llpf_fast.ops.relu_pool_bounds import relu_pool_bounds_eager

from ..harness.case import OURS, Case, Contender, Cost, Prepared

PASSES = "passes of torch"
#: Images of a batch of the enclosure, channels and sides of LeNet5's first layer.
SHAPE = (125, 6, 28, 28)
#: Operations of a form in a window (four ends, five comparisons, two sums), and of a result.
FLOPS_OF_CELL, FLOPS_OF_RESULT = 11, 60


def prepare(kernel: int, device: torch.device, pool: int) -> Prepared:
    window = {
        name: [value] * 2 for name, value in (("kernel", kernel), ("stride", kernel), ("padding", 0), ("dilation", 1))
    }
    generator = torch.Generator().manual_seed(0)
    members = []
    for _ in range(pool):
        left = torch.randn(SHAPE, generator=generator)
        right, radius = (
            left + 0.1 * torch.randn(SHAPE, generator=generator),
            torch.rand(SHAPE, generator=generator) / 100,
        )
        members.append([value.to(device) for value in (left, right, radius)])
    ours = [partial(ops.relu_pool_bounds, *member, 0.0, **window) for member in members]
    passes = [partial(relu_pool_bounds_eager, *member, 0.0, ceil_mode=False, **window) for member in members]

    def error() -> float:
        return max(float((got - want).abs().max()) for got, want in zip(ours[0](), passes[0](), strict=True))

    sizes = members[0][0].numel() + members[0][0].numel() // kernel**2
    streams = [tuple(torch.ones(sizes, device=device) for _ in range(2)) for _ in range(pool)]
    return Prepared({OURS: Contender(ours, error, 0.0), PASSES: Contender(passes, lambda: 0.0, 0.0)}, streams)


def case(kernel: int, variant: str) -> Case:
    cells = torch.Size(SHAPE).numel()
    results = cells // kernel**2
    touched = 12 * (cells + results)
    return Case(
        op="relu_pool_bounds",
        size=f"LeNet5, {SHAPE[0]} images",
        parameters=cells,
        dtype="float32",
        variant=variant,
        cost=Cost(touched=touched, read=0, triad=touched, flops=FLOPS_OF_CELL * cells + FLOPS_OF_RESULT * results),
        prepare=partial(prepare, kernel),
        caches=("warm", "cold"),
        threads=(1,),
        member_bytes=20 * cells,
        memory=40 * 4 * cells,
        tier="quick" if kernel > 1 else "usual",
    )


def cases() -> Iterator[Case]:
    yield case(2, "")
    yield case(1, "ReLU alone")
