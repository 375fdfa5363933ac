"""sgd_: torch.optim.SGD over the flat buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import CHUNK, SegmentTable
from llpf_fast.ops import SegmentFlag
from llpf_fast.ops.sgd import sgd_eager

from . import oracle
from .comparison import assert_within, compute_type, exact, poison, same_bits, unit
from .examples import F64, Arguments, N, narrow, table
from .oracle import Array, Real
from .strategies import Case, cases

SIZES = (1, 2, 15, 16, 17, 129, CHUNK - 1, CHUNK, CHUNK + 1)
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 5e-4},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 5e-3},
    {"momentum": 0.7, "weight_decay": 5e-3, "nesterov": True},
)
EVERY = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}


def examples() -> list[Arguments]:
    full = {"p": torch.randn(N), "g": torch.randn(N), "momentum_buffer": torch.randn(N)}
    full |= {"lr": torch.tensor(0.1, dtype=F64), **table(), "active": torch.ones(1, 2, dtype=F64)}
    full |= {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    paths = {"p": narrow(3), "g": narrow(3), "momentum_buffer": narrow(3), "active": torch.ones(3, 2, dtype=F64)}
    return [full, full | {"momentum_buffer": None, "active": None, "momentum": 0.0}, full | paths]


def rate_for(case: Case, kind: int) -> Tensor:
    """lr in each of its shapes."""
    k, s = case.paths, len(case.table)
    shape = ((), (1,), (s,), (k, 1), (k, s))[kind]
    return torch.linspace(0.01, 0.2, max(1, k * s), dtype=torch.float64)[: torch.Size(shape).numel()].reshape(shape)


def like(case: Case, seed: int) -> Tensor:
    """Random values of p's shape and dtype with poisoned padding."""
    out = torch.randn(case.p.shape, generator=torch.Generator().manual_seed(seed)).to(case.p.dtype)
    poison(out, ~case.covered())
    return out


def step_size(p: Array, g: Array, buffer: Array | None, rate: Real, rule: dict[str, Any]) -> tuple[Array, Array]:
    """Sum of the magnitudes of all terms of the new value and of the new buffer."""
    direction = abs(g) + rule["weight_decay"] * abs(p)
    moving = direction
    if buffer is not None:
        moving = rule["momentum"] * abs(buffer) + direction
        direction = direction + rule["momentum"] * moving if rule["nesterov"] else moving
    return abs(p) + rate * direction, moving


@given(case=cases(), rule=st.sampled_from(RULES), kind=st.integers(0, 4))
def test_equals_the_formula(case: Case, rule: dict[str, Any], kind: int, backend: str) -> None:
    """Error at most eight roundings of the arithmetic and one unit of the storage, of the terms' magnitudes."""
    rule = EVERY | rule
    g, rate = like(case, case.seed), rate_for(case, kind)
    buffer = like(case, case.seed + 1) if rule["momentum"] else None
    p, new_buffer = case.p.clone(), None if buffer is None else buffer.clone()
    ops.sgd_(p, g, new_buffer, rate, case.table.segments, case.table.chunks, case.active, **rule)
    rounding = Real(torch.finfo(compute_type(case.p.dtype)).eps) * 4
    outside = ~case.covered()
    shape = (case.paths, -1)
    rates = exact(rate.reshape(-1, rate.shape[-1] if rate.dim() else 1).expand(case.paths, len(case.table)))
    flat = lambda value: None if value is None else value.reshape(shape)
    for k in range(case.paths):
        before, momentum = case.p.reshape(shape)[k], None if buffer is None else flat(buffer)[k]
        now, left = p.reshape(shape)[k], None if new_buffer is None else flat(new_buffer)[k]
        if not case.is_open(k):
            assert same_bits(now, before)
            assert left is None or same_bits(left, momentum)
            continue
        assert same_bits(now[outside], before[outside])
        assert left is None or same_bits(left[outside], momentum[outside])
        x, gradient, old = exact(before), exact(g.reshape(shape)[k]), None if momentum is None else exact(momentum)
        want, want_buffer = oracle.sgd(x, gradient, old, rates[k], case.layers, **rule)
        for i, layer in enumerate(case.layers):
            part = slice(layer.offset, layer.offset + layer.length)
            if layer.has(oracle.FROZEN):
                assert same_bits(now[part], before[part])
                assert left is None or same_bits(left[part], momentum[part])
                continue
            moved = None if old is None else old[part]
            size, buffer_size = step_size(x[part], gradient[part], moved, rates[k, i], rule)
            assert_within(now[part], want[part], rounding * size + unit(size, case.p.dtype) / 2)
            if left is not None:
                bound = rounding * buffer_size + unit(buffer_size, case.p.dtype) / 2
                assert_within(left[part], want_buffer[part], bound)


@pytest.mark.many_elements
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.usefixtures("backend")
def test_twenty_steps_of_torch(rule: dict[str, Any], dtype: torch.dtype) -> None:
    """Against torch.optim.SGD in float64, error at most twice that of torch's SGD at the storage type."""
    lengths, rates = [300, 1, 17, 4099], [0.1, 0.05, 0.2, 0.01]
    table = SegmentTable.from_lengths(lengths)
    torch.manual_seed(0)
    start = torch.randn(table.numel).to(dtype)
    gradients = [torch.randn(table.numel).to(dtype) for _ in range(20)]
    parts = [slice(row.offset, row.offset + row.length) for row in table.rows]

    def torch_runs(precision: torch.dtype) -> Tensor:
        parameters = [start[part].to(precision).requires_grad_() for part in parts]
        optimizer = torch.optim.SGD(
            [{"params": [w], "lr": lr} for w, lr in zip(parameters, rates, strict=True)], **rule
        )
        for g in gradients:
            for w, part in zip(parameters, parts, strict=True):
                w.grad = g[part].to(precision)
            optimizer.step()
        return torch.cat([w.detach().double() for w in parameters])

    p, buffer = start.clone(), torch.zeros_like(start) if "momentum" in rule else None
    for g in gradients:
        lr = torch.tensor(rates, dtype=torch.float64)
        ops.sgd_(p, g, buffer, lr, table.segments, table.chunks, **rule)
    got, want = torch.cat([p[part] for part in parts]).double(), torch_runs(torch.float64)
    if dtype == torch.float64:
        assert torch.allclose(got, want, rtol=1e-14, atol=1e-14)
        return
    torch_error = (torch_runs(dtype) - want).abs().max()
    assert (got - want).abs().max() <= 2 * torch_error + torch.finfo(dtype).eps


@given(case=cases(), rule=st.sampled_from(RULES), kind=st.integers(0, 4))
@pytest.mark.usefixtures("backend")
def test_repeats_bitwise_and_row_by_row(case: Case, rule: dict[str, Any], kind: int) -> None:
    rule = EVERY | rule
    g, rate = like(case, case.seed), rate_for(case, kind)
    start = like(case, case.seed + 1) if rule["momentum"] else None
    table = (case.table.segments, case.table.chunks)

    def run() -> tuple[Tensor, Tensor | None]:
        p, buffer = case.p.clone(), None if start is None else start.clone()
        ops.sgd_(p, g, buffer, rate, *table, case.active, **rule)
        return p, buffer

    p, buffer = run()
    for got, again in zip((p, buffer), run(), strict=True):
        assert got is None or same_bits(got, again)
    if case.p.dim() == 1:
        return
    for k in range(case.paths):
        alone = case.row(k)
        values, buffer_alone = alone.p, None if start is None else start[k].clone()
        rate_alone = rate[k].clone() if rate.dim() == 2 else rate
        ops.sgd_(values, g[k].clone(), buffer_alone, rate_alone, *table, alone.active, **rule)
        assert same_bits(values, p[k])
        assert buffer_alone is None or same_bits(buffer_alone, buffer[k])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("backend")
def test_sizes_are_exact_where_nothing_rounds(n: int) -> None:
    table = SegmentTable.from_lengths([n, n], flags=[SegmentFlag.NONE, SegmentFlag.FROZEN])
    p, g, buffer = (torch.randint(-99, 99, (table.numel,)).float() for _ in range(3))
    inside = torch.zeros(table.numel, dtype=torch.bool)
    inside[:n] = True
    for value in (p, g, buffer):
        poison(value, ~inside)
    new, new_buffer = p.clone(), buffer.clone()
    lr = torch.tensor([0.25, 1.0], dtype=torch.float64)
    ops.sgd_(new, g, new_buffer, lr, table.segments, table.chunks, momentum=0.5)
    assert torch.equal(new_buffer[:n], 0.5 * buffer[:n] + g[:n])
    assert torch.equal(new[:n], p[:n] - 0.25 * new_buffer[:n])
    assert same_bits(new[~inside], p[~inside])
    assert same_bits(new_buffer[~inside], buffer[~inside])


@pytest.mark.usefixtures("backend")
def test_masked_segments_still_train() -> None:
    table = SegmentTable.from_lengths([20, 20], flags=[SegmentFlag.MASKED, SegmentFlag.HOLD])
    p, g = torch.zeros(table.numel), torch.ones(table.numel)
    ops.sgd_(p, g, None, torch.tensor(0.5, dtype=torch.float64), table.segments, table.chunks)
    assert p[:20].eq(-0.5).all()
    assert p[32:52].eq(-0.5).all()
    assert not p[20:32].any()


@pytest.mark.usefixtures("backend")
def test_state_of_loss_gate_serves_as_gate() -> None:
    """Open, open and last, closed: trains, trains, changes nothing."""
    table = SegmentTable.from_lengths([100])
    lr, threshold = torch.tensor(0.5, dtype=torch.float64), {"threshold": 1.0, "window": 1, "max_steps": 9}
    state, p, buffer = ops.gate_state(1), torch.randn(table.numel), torch.zeros(table.numel)
    for loss, trains in ((2.0, True), (0.5, True), (0.1, False), (5.0, False)):
        before = [value.clone() for value in (p, buffer)]
        ops.loss_gate_(state, torch.tensor(loss), **threshold)
        ops.sgd_(p, torch.randn(table.numel), buffer, lr, table.segments, table.chunks, state, momentum=0.9)
        assert [not same_bits(now, then) for now, then in zip((p, buffer), before, strict=True)] == [trains, trains]


@pytest.mark.usefixtures("backend")
def test_closed_paths_are_not_read() -> None:
    """A NaN gradient behind a closed active changes nothing; the other path trains."""
    table = SegmentTable.from_lengths([4097])
    p, buffer = torch.randn(2, table.numel), torch.randn(2, table.numel)
    g = torch.randn(2, table.numel)
    g[1] = torch.nan
    active = torch.tensor([1.0, 0.0], dtype=torch.float64)
    new, new_buffer = p.clone(), buffer.clone()
    lr = torch.tensor(0.5, dtype=torch.float64)
    ops.sgd_(new, g, new_buffer, lr, table.segments, table.chunks, active, momentum=0.9)
    assert same_bits(new[1], p[1])
    assert same_bits(new_buffer[1], buffer[1])
    assert bool((new[0] != p[0])[:4097].all())


@pytest.mark.many_elements
@pytest.mark.parametrize("paths", [None, 3])
def test_any_number_of_threads(paths: int | None, backend: str) -> None:
    table = SegmentTable.from_lengths([600_003, 1, 100_001])
    shape = (table.numel,) if paths is None else (paths, table.numel)
    p, g, buffer = (torch.randn(shape) for _ in range(3))
    lr = torch.tensor(0.1, dtype=torch.float64)

    def run(kernel: Any) -> list[Tensor]:
        new, new_buffer = p.clone(), buffer.clone()
        rule = {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
        kernel(new, g, new_buffer, lr, table.segments, table.chunks, None, **rule)
        return [new, new_buffer]

    one = run(ops.sgd_)
    torch.set_num_threads(2)
    assert all(same_bits(a, b) for a, b in zip(one, run(ops.sgd_), strict=True))
    if backend != "eager":
        close = zip(one, run(sgd_eager), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in close)
