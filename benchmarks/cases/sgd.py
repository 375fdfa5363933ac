"""``sgd_``: the correction's update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llpf_fast import ops

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.problem import ALLOWED, Problem, Values
from ..harness.sizes import parameters
from .tick import segments, storage

LR, MOMENTUM = 1e-4, 0.9
#: buffer = momentum buffer + g; p = p - lr buffer.
FLOPS = 4


class Update:
    """p, gradient and momentum of every member."""

    def __init__(self, problem: Problem, variant: str) -> None:
        self.problem = problem
        self.momentum = 0.0 if variant == "no momentum" else MOMENTUM
        self.lr = torch.tensor(LR, dtype=torch.float64, device=problem.device)
        self.g = [torch.randn_like(values.p) for values in problem.pool]
        self.buffers = [torch.zeros_like(values.p) if self.momentum else None for values in problem.pool]

    def call(self, values: Values, g: Tensor, buffer: Tensor | None) -> None:
        table = self.problem.table
        ops.sgd_(values.p, g, buffer, self.lr, table.segments, table.chunks, momentum=self.momentum)

    def calls(self) -> list[Callable[[], None]]:
        members = zip(self.problem.pool, self.g, self.buffers, strict=True)
        return [partial(self.call, values, g, buffer) for values, g, buffer in members]

    def error(self, run: Callable[[], object], got: Callable[[], list[Tensor]]) -> float:
        """Of the first update, whose buffer is the gradient: p - lr g."""
        problem, before = self.problem, self.problem.flat(got())
        run()
        maps = torch.tensor([1.0, -LR, 0.0], dtype=torch.float64, device=problem.device).repeat(len(problem.table), 1)
        return problem.error(got(), before, self.g[0], maps, (0, 1, 2))

    def own_error(self, run: Callable[[], object]) -> float:
        if self.buffers[0] is not None:
            self.buffers[0].zero_()
        return self.error(run, partial(segments, self.problem, self.problem.p))


def prepare(
    size: str, dtype: str, variant: str, baselines: tuple[str, ...], device: torch.device, pool: int
) -> Prepared:
    problem = Problem(size, *storage(dtype), device, pool)
    update = Update(problem, variant)
    allowed = ALLOWED[problem.p.dtype]
    contenders = {}
    for how in baselines:
        if how == "float32 storage":
            wide = Update(Problem(size, torch.float32, torch.float32, device, pool), variant)
            run = wide.calls()
            contenders[how] = Contender(run, partial(wide.own_error, run[0]), ALLOWED[torch.float32])
        else:
            contenders[f"torch.optim.SGD({how})"] = _optimizer(update, how, allowed)
    calls = update.calls()
    contenders[OURS] = Contender(calls, partial(update.own_error, calls[0]), allowed)
    return Prepared(contenders, problem.streams())


def _optimizer(update: Update, how: str, allowed: float) -> Contender:
    """``torch.optim.SGD`` over separate tensors, "fused" or "foreach", as a training loop calls it."""
    problem, states = update.problem, []
    for values, g in zip(problem.pool, update.g, strict=True):
        p = problem.tensors(values.p)
        for value, gradient in zip(p, problem.tensors(g), strict=True):
            value.requires_grad_(True)
            value.grad = gradient
        sgd = torch.optim.SGD(p, lr=LR, momentum=update.momentum, fused=how == "fused", foreach=how == "foreach")
        states.append((p, sgd))
    got = lambda: [value.detach() for value in states[0][0]]
    calls = [optimizer.step for _, optimizer in states]
    return Contender(calls, lambda: update.error(calls[0], got), allowed)


def cost(size: str, dtype: str, variant: str) -> Cost:
    words = 3 if variant == "no momentum" else 5
    moved = parameters(size) * words * storage(dtype)[0].itemsize
    return Cost(touched=moved, read=0, triad=moved, flops=parameters(size) * (2 if words == 3 else FLOPS))


def case(size: str, dtype: str = "float32", variant: str = "", baselines: tuple[str, ...] = (), **given: Any) -> Case:
    pair = storage(dtype)
    member = parameters(size) * (3 * pair[0].itemsize + pair[1].itemsize)
    return Case(
        op="sgd_",
        size=size,
        parameters=parameters(size),
        dtype=dtype,
        variant=variant,
        cost=cost(size, dtype, variant),
        prepare=partial(prepare, size, dtype, variant, baselines),
        member_bytes=member,
        memory=(2 + len(baselines)) * max(member, 1 << 27),
        **given,
    )


def cases() -> Iterator[Case]:
    fused = ("fused", "foreach")
    yield case("LeNet5", baselines=fused, caches=("warm", "cold"), threads=(1,), tier="quick")
    yield case("ResNet18", baselines=fused, tier="quick")
    yield case("ResNet18", variant="no momentum", baselines=("fused",))
    yield case("ResNet18", "bfloat16", baselines=("float32 storage",))
