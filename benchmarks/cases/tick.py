"""``tick_``: every network's tensors, storages, what training left behind, and the sizes of the bandwidth plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llpf_fast import ops
from llpf_fast.ops import Destination

from ..baselines import authors, compiled, foreach, per_layer, plain
from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.problem import ALLOWED, ALLOWED_OF_BASELINES, RULE, SPREAD, Problem, Values
from ..harness.sizes import TABLES, parameters

#: Additions and multiplications an element: differences, products and sums of the moments; a p + b d + c.
FLOPS_OF_MOMENTS, FLOPS_OF_MAP = 10, 4
STEP = (0.0, 1e-3)
PLAIN = "plain C++"


def wanted(problem: Problem, run: Callable[[], object], got: Callable[[], list[Tensor]], **options: Any) -> float:
    """Error of ``run`` on the first member: ``got`` returns its values, one tensor a segment."""
    before = problem.flat(got())
    d = options.get("d", problem.d)
    maps = problem.maps64(before, d, options.get("destination", 0))
    run()
    error = problem.error(got(), before, d, maps, (0, 1, 2), options.get("least"))
    if waypoint := options.get("waypoint"):
        error = max(error, problem.error(waypoint(), before, None, maps, (3, 4)))
    if options.get("flat") and not problem.untouched(problem.p, before):
        return float("nan")
    return error


def segments(problem: Problem, flat: Tensor) -> list[Tensor]:
    return [flat[part] for part in problem.slices()]


def _tick(problem: Problem, values: Values, d: Tensor | None, destination: int, **given: Tensor | None) -> None:
    ops.tick_(
        values.p,
        d,
        problem.table.segments,
        problem.table.chunks,
        problem.target,
        problem.step,
        scratch=problem.scratch,
        destination=destination,
        moments_in=given.get("moments_in"),
        waypoint=given.get("waypoint"),
        **RULE,
    )


def ours(problem: Problem, variant: str) -> Contender:
    """``ops.tick_`` on every member: the whole call from Python."""
    origin = variant == "origin"
    destination = int(Destination.ORIGIN if origin else Destination.POINT)
    calls = []
    options: dict[str, Any] = {"flat": True, "destination": destination}
    if origin:
        options["d"] = None
    for values in problem.pool:
        d = None if origin else values.d
        given: dict[str, Tensor] = {}
        if variant == "moments_in":
            given["moments_in"] = problem.moments64(values.p, d)
        if variant == "waypoint":
            given["waypoint"] = torch.empty_like(values.p)
            options.setdefault("waypoint", partial(segments, problem, given["waypoint"]))
        calls.append(partial(_tick, problem, values, d, destination, **given))
    got = partial(segments, problem, problem.p)
    allowed = ALLOWED[problem.p.dtype]
    return Contender(calls, lambda: wanted(problem, calls[0], got, **options), allowed)


def narrow_against_wide(size: str, device: torch.device, pool: int) -> Contender:
    """The same tick on float32 storage."""
    return ours(Problem(size, torch.float32, torch.float32, device, pool), "")


def baseline(problem: Problem, calls: Sequence[Callable[[], object]], got: Callable[[], list[Tensor]]) -> Contender:
    """A program of another kind, compared with the same reference."""
    error = lambda: wanted(problem, calls[0], got, least=SPREAD)
    return Contender(calls, error, ALLOWED_OF_BASELINES[problem.p.dtype])


def baseline_per_layer(problem: Problem, device: torch.device) -> Contender:
    states = []
    for values in problem.pool:
        names = [row.name for row in problem.table.rows]
        pair = problem.tensors(values.p), problem.tensors(values.d)
        states.append(tuple(dict(zip(names, tensors, strict=True)) for tensors in pair))
    variance = {row.name: SPREAD**2 for row in problem.table.rows}
    calls = [partial(per_layer.tick_, p, d, variance, *STEP) for p, d in states]
    got = lambda: list(states[0][0].values())
    return baseline(problem, calls, got)


def baseline_foreach(problem: Problem, device: torch.device) -> Contender:
    states = [(problem.tensors(values.p), problem.tensors(values.d)) for values in problem.pool]
    variance = [SPREAD**2] * len(problem.table)
    calls = [partial(foreach.tick_, p, d, variance, *STEP) for p, d in states]
    got = lambda: states[0][0]
    return baseline(problem, calls, got)


def baseline_compiled(problem: Problem, device: torch.device) -> Contender:
    count = len(problem.table)
    variance = torch.full((count, 1), SPREAD**2, device=device)
    step = torch.tensor(STEP, device=device)
    tick_ = compiled.tick_()
    shape = (count, -1)
    calls = [partial(tick_, values.p.view(shape), values.d.view(shape), variance, step) for values in problem.pool]
    got = partial(segments, problem, problem.p)
    return baseline(problem, calls, got)


def baseline_plain(problem: Problem, device: torch.device) -> Contender:
    rows = problem.table.rows
    layout = [torch.tensor(values) for values in ([row.offset for row in rows], [row.length for row in rows])]
    pairs = [(values.p.clone(), values.d) for values in problem.pool]
    calls = [plain.Tick(p, d, *layout, SPREAD**2, *STEP) for p, d in pairs]
    return baseline(problem, calls, partial(segments, problem, pairs[0][0]))


def baseline_authors(problem: Problem, device: torch.device) -> Contender:
    models = [authors.Model(problem.tensors(values.p)) for values in problem.pool]
    goals = [authors.Model(problem.tensors(values.d)).state_dict() for values in problem.pool]
    variance = dict.fromkeys(goals[0], SPREAD**2)
    to = open(os.devnull, "w")  # noqa: SIM115  (as long as the contender lives)
    calls = [
        partial(authors.tick_, model, goal, variance, *STEP, to) for model, goal in zip(models, goals, strict=True)
    ]
    got = lambda: list(models[0].state_dict().values())
    return baseline(problem, calls, got)


BASELINES = {
    "per-layer eager": baseline_per_layer,
    "torch._foreach": baseline_foreach,
    "torch.compile, flat": baseline_compiled,
    "authors-like": baseline_authors,
    PLAIN: baseline_plain,
}

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def storage(dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """Of p and d, from "float32" or "float32/bfloat16"."""
    first, _, second = dtype.partition("/")
    return _DTYPES[first], _DTYPES[second or first]


def prepare(
    size: str, dtype: str, variant: str, baselines: tuple[str, ...], device: torch.device, pool: int
) -> Prepared:
    problem = Problem(size, *storage(dtype), device, pool, masked=variant == "half masked")
    contenders = {}
    # Baselines on separate tensors copy them before the first tick changes them.
    for name in baselines:
        if name != "float32 storage" and (name != PLAIN or device.type == "cpu"):
            contenders[name] = BASELINES[name](problem, device)
    if "float32 storage" in baselines:
        contenders["float32 storage"] = narrow_against_wide(size, device, pool)
    contenders = {OURS: ours(problem, variant), **contenders}
    return Prepared(contenders, problem.streams())


def elements(size: str, variant: str) -> int:
    """Elements that are not MASKED."""
    lengths = TABLES[size]()
    return sum(lengths[::2]) if variant == "half masked" else sum(lengths)


def cost(size: str, dtype: str, variant: str) -> Cost:
    n = elements(size, variant)
    wide, narrow = (kind.itemsize for kind in storage(dtype))
    if variant == "origin":
        narrow = 0
    recorded = parameters(size) * wide if variant == "waypoint" else 0
    # p read and written, d read; and p and d once more without `moments_in`.
    moved = n * (2 * wide + narrow) + recorded
    left = variant == "moments_in"
    flops = n * (FLOPS_OF_MAP * (2 if recorded else 1) + (0 if left else FLOPS_OF_MOMENTS))
    return Cost(touched=moved, read=0 if left else n * (wide + narrow), triad=moved, flops=flops)


def case(size: str, dtype: str = "float32", variant: str = "", baselines: tuple[str, ...] = (), **given: Any) -> Case:
    pair = storage(dtype)
    member = parameters(size) * (pair[0].itemsize + pair[1].itemsize)
    sets = 1 + sum(2 if name == "authors-like" else 1 for name in baselines if name != "torch.compile, flat")
    return Case(
        op="tick_",
        size=size,
        parameters=parameters(size),
        dtype=dtype,
        variant=variant,
        cost=cost(size, dtype, variant),
        prepare=partial(prepare, size, dtype, variant, baselines),
        member_bytes=member,
        # Beside the members: the values before the check, the copy's target, and float64 of one segment.
        memory=sets * max(member, 1 << 27) + member,
        **given,
    )


def cases() -> Iterator[Case]:
    eager = ("per-layer eager", "torch._foreach")
    yield case("LeNet5", baselines=(*eager, "authors-like", PLAIN), caches=("warm", "cold"), threads=(1,), tier="quick")
    yield case("ResNet18", baselines=(*eager, "authors-like"), tier="quick")
    yield case("ResNet50", baselines=(*eager, "authors-like"), threads=(1,))
    # Compiled code has its number of threads built in, and compiling takes half a minute.
    yield case("100M", baselines=("torch.compile, flat",), threads=(1,))
    yield case("100M", threads=(2,))
    yield case("LeNet5", variant="moments_in", caches=("warm",), threads=(1,), tier="quick")
    yield case("ResNet18", variant="moments_in")
    yield case("100M", variant="moments_in")
    yield case("ResNet18", variant="waypoint")
    yield case("ResNet18", variant="origin")
    yield case("ResNet18", variant="half masked")
    yield case("ResNet18", "bfloat16", baselines=("float32 storage",), tier="quick")
    yield case("ResNet18", "float32/bfloat16", baselines=("float32 storage",))
    yield case("ResNet18", "float64", threads=(1,))
    yield case("100M", "bfloat16", baselines=("float32 storage",))
    for size in ("256Ki", "1Mi", "4Mi"):
        yield case(size, tier="quick")
    yield case("268M")
    yield case("1B", tier="large")
