"""What the GPU backends must do, as plain functions: pytest runs them, and so does benchmarks/gpu/checks.py without it.

A unit is one check of one group of cases: ``UNITS`` names them. Each takes a device, raises AssertionError, and may
return what it found. On the CPU (the harness's own test) what needs streams, graphs or the allocator raises NotHere.

References are computed on the CPU, once for all gates: with a gate the open paths have the bits that they have without.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import captured_checks
import torch
from gpu_cases import (
    PAIRS,
    Case,
    cases,
    destination,
    gates,
    named,
    per_element,
    per_variance_group,
    poisoned_scratch,
    values,
)
from torch import Tensor

from llpf_fast import LLPFError, ops
from llpf_fast.correct.graphs import capture
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import Destination, SegmentFlag, gate_state
from llpf_fast.ops.backend import use_backend, why_not
from llpf_fast.ops.coefficients import coefficients_eager
from llpf_fast.ops.counter_randint import counter_randint_eager
from llpf_fast.ops.library import accumulation_dtype
from llpf_fast.ops.loss_gate import ACTIVE, FINAL, MEAN, STEPS, loss_gate_eager
from llpf_fast.ops.moments import moments_eager
from llpf_fast.ops.relu_pool_bounds import relu_pool_bounds_eager
from llpf_fast.ops.tick import tick_eager

Pair = tuple[torch.dtype, torch.dtype]
Rule = dict[str, Any]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
RULES: tuple[dict[str, Any], ...] = (
    {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True},
    {"epsilon": 1e-4, "combine_sum": False, "clamp": False, "project_first": False},
)
SPHERES = (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)


class NotHere(Exception):  # noqa: N818  (not an error: the check has no meaning on this device)
    """The check needs a CUDA device."""


class Unavailable(Exception):  # noqa: N818  (not an error either)
    """The backend does not run here; the reason."""


def bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(INTEGERS[value.element_size()])


def same_bits(got: Tensor, want: Tensor, what: str) -> None:
    different = (bits(got) != bits(want)).nonzero()
    assert different.numel() == 0, f"{what}: {len(different)} elements differ, the first at {different[0].tolist()}"


def close(got: Tensor, want: Tensor, scale: Tensor, what: str) -> None:
    """|got - want| <= scale everywhere; NaN never passes."""
    error = (got.double().cpu() - want).abs()
    bad = ~(error <= scale)
    if bool(bad.any()):
        worst = int(torch.where(bad, error / scale.clamp(min=1e-300), -1.0).nan_to_num(math.inf).flatten().argmax())
        pair = got.flatten()[worst].item(), want.flatten()[worst].item()
        raise AssertionError(
            f"{what}: {int(bad.sum())} elements off, the worst at {worst}: got {pair[0]}, want {pair[1]}"
        )


def on_cpu(case: Case) -> Case:
    return case.on("cpu")


def of_types(pair: Pair, device: torch.device) -> Iterator[Case]:
    """What depends on storage; the tree of chunks and the groups' maps are float64 whatever is stored."""
    for case in cases():
        if pair == PAIRS[0] or not case.float64_only:
            yield case.with_dtypes(*pair).on(device)


def float32(device: torch.device) -> Iterator[Case]:
    for case in cases():
        yield case.on(device)


def covered(case: Case, skipped: SegmentFlag) -> Tensor:
    """bool ``[N]``: elements of segments without a flag of ``skipped``."""
    out = torch.zeros(case.table.numel, dtype=torch.bool)
    for row in case.table.rows:
        if not row.flags & skipped:
            out[row.offset : row.offset + row.length] = True
    return out


class Inputs:
    """The arguments of the ops for one case: on its device, and in float64 on the CPU for the reference."""

    def __init__(self, case: Case, poison: SegmentFlag = SegmentFlag.MASKED) -> None:
        self.case, self.table, self.cpu = case, case.table, case.table.to("cpu")
        self.p = values(case, case.dtype, 0, poison=poison)
        self.d = destination(case, self.p)
        self.g = values(case, case.dtype, 2)
        self.buffer = values(case, case.dtype, 3)
        self.target = per_variance_group(case, 4, case.paths)
        self.radius = per_variance_group(case, 5, None)
        self.step = torch.tensor([0.01, 0.1], dtype=torch.float64, device=case.table.device)
        self.lr = 0.1 * per_variance_group(case, 6, case.paths)

    def rule(self, kind: Destination, gate: Tensor | None) -> dict[str, Any]:
        radius = self.radius if kind in SPHERES else None
        return {
            "target_variance": self.target,
            "step": self.step,
            "active": gate,
            "radius": radius,
            "destination": kind,
        }

    def moments64(self, with_d: bool = True) -> Tensor:
        d = self.d.double().cpu() if with_d else None
        return moments_eager(
            self.p.double().cpu(), d, self.cpu.segments, self.cpu.chunks, poisoned_scratch(on_cpu(self.case))
        )

    def tick(self, p: Tensor, kind: Destination, gate: Tensor | None, rule: dict[str, Any], **more: Any) -> None:
        d = self.d if kind == Destination.POINT else None
        if "scratch" not in more:
            more["scratch"] = poisoned_scratch(self.case)
        ops.tick_(p, d, self.table.segments, self.table.chunks, **self.rule(kind, gate), **rule, **more)

    def tick_reference(self, dtype: torch.dtype | None, kind: Destination, rule: Rule) -> tuple[Tensor, Tensor]:
        """The specification on the CPU, in ``dtype`` (``None``: the storage types as they are): p and the waypoint."""
        p = self.p.cpu().to(dtype or self.p.dtype, copy=True)
        waypoint = torch.full_like(p, math.nan)
        d = None if kind != Destination.POINT else self.d.cpu() if dtype is None else self.d.cpu().to(dtype)
        common = self.rule(kind, None)
        tensors = [
            v if v is None else v.cpu() for v in (common[n] for n in ("target_variance", "step", "active", "radius"))
        ]
        scratch = poisoned_scratch(on_cpu(self.case))
        given = [p, d, self.cpu.segments, self.cpu.chunks, *tensors, None, waypoint, scratch]
        tick_eager(*given, destination=int(kind), **rule)
        return p, waypoint

    def update_reference(self, dtype: torch.dtype, setting: Rule) -> tuple[Tensor, Tensor]:
        """torch.optim.SGD's rule for all elements at once, stored in ``dtype``: p and the momentum buffer."""
        p, g, buffer = (value.cpu().to(dtype) for value in (self.p, self.g, self.buffer))
        compute = accumulation_dtype(dtype)
        old, direction, momentum = p.to(compute), g.to(compute), setting["momentum"]
        if setting["weight_decay"]:
            direction = direction + setting["weight_decay"] * old
        if momentum:
            moving = momentum * buffer.to(compute) + direction
            direction = direction + momentum * moving if setting["nesterov"] else moving
            buffer = moving.to(dtype)
        return (old - per_element(self.case, self.lr.cpu()).to(compute) * direction).to(dtype), buffer


def twice_the_eager_error(got: Tensor, eager: Tensor, want: Tensor, reach: Tensor, what: str) -> None:
    """No further from float64 than twice eager's own distance, plus a unit in the last place of the storage."""
    unit = max(torch.finfo(got.dtype).eps, 1e-11)
    error = (eager.double() - want).abs().nan_to_num(0.0)
    close(got, want, 2 * error.max() + unit * reach, what)


# ---- values


def check_moments(pair: Pair, device: torch.device) -> None:
    for case in of_types(pair, device):
        at = Inputs(case)
        for with_d in (True, False):
            d = at.d if with_d else None
            got = ops.moments(at.p, d, at.table.segments, at.table.chunks, poisoned_scratch(case))
            want = at.moments64(with_d)
            n = at.cpu.segments[:, 1].double()
            deviation = (want[..., 2] / n).sqrt() + (want[..., 4] / n).sqrt()
            mean = want[..., 0].abs() + want[..., 1].abs() + deviation
            mixed = (want[..., 2] * want[..., 4]).sqrt()
            scale = torch.stack([mean, mean, want[..., 2], mixed, want[..., 4]], -1)
            close(got, want, 1e-11 * scale, f"moments of {case}")


def check_coefficients(kind: Destination, rule: Rule, device: torch.device) -> None:
    for case in float32(device):
        at = Inputs(case)
        measured = at.moments64(kind == Destination.POINT)
        for gate in gates(case):
            arguments = at.rule(kind, gate)
            got = ops.coefficients(measured.to(device), at.table.segments, **arguments, **rule)
            plain: dict[str, Any] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            plain["destination"] = int(kind)
            want = coefficients_eager(measured, at.cpu.segments, **plain, **rule)
            close(got, want, 1e-11 * (1 + want.abs()), f"coefficients of {case}, {kind.name}")


def check_affine(pair: Pair, device: torch.device) -> None:
    for case in of_types(pair, device):
        at = Inputs(case)
        maps = torch.rand(
            (*case.shape()[:-1], len(case.table), 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        maps[..., 0, :3] = torch.tensor([1.0, 0.0, 0.0])  # every bit stays
        maps[..., 1, 1] = 0.0  # d is not read
        d = at.d.clone()
        second = case.table.rows[1]
        d[..., second.offset : second.offset + second.length] = math.nan
        got = at.p.clone()
        ops.affine_(got, d, maps.to(device), at.table.segments, at.table.chunks)
        p64, d64 = at.p.double().cpu(), d.double().cpu()
        want, same = p64.clone(), ~covered(case, SegmentFlag.MASKED)
        for s, row in enumerate(case.table.rows):
            part = slice(row.offset, row.offset + row.length)
            a, b, c = (column[..., None] for column in maps[..., s, :3].unbind(-1))
            want[..., part] = a * p64[..., part] + torch.where(b == 0, 0.0, b * d64[..., part]) + c
            if s == 0:
                same[part] = True
        same_bits(got[..., same], at.p[..., same], f"untouched elements of affine_ of {case}")
        reach = p64.abs() + d64.abs().nan_to_num(0.0) + 1
        unit = max(torch.finfo(case.dtype).eps, 1e-14)
        close(got[..., ~same], want[..., ~same], 2 * unit * reach.expand_as(want)[..., ~same], f"affine_ of {case}")


def only_open_paths(
    case: Case, gate: Tensor, run: Callable[[], Tensor], without: Tensor, before: Tensor, what: str
) -> None:
    """``run``'s result under ``gate``: the bits that open paths have without a gate, and of closed ones every bit."""
    opened = (gate.cpu()[:, ACTIVE] != 0).reshape(-1, 1)
    shape = (-1, case.table.numel)
    want = torch.where(opened, bits(without).reshape(shape), bits(before).reshape(shape))
    wrong = (bits(run()).reshape(shape) != want).nonzero()
    assert wrong.numel() == 0, f"{what}: {len(wrong)} elements differ with a gate, the first at {wrong[0].tolist()}"


def check_tick(kind: Destination, pair: Pair, device: torch.device) -> None:
    for number, case in enumerate(of_types(pair, device)):
        at = Inputs(case)
        # The rule acts on float64 maps: of other storage types each case takes one of the two in turn.
        for rule in RULES if pair == PAIRS[0] else (RULES[number % len(RULES)],):
            _one_tick(at, kind, rule)


def _one_tick(at: Inputs, kind: Destination, rule: Rule) -> None:
    case, what = at.case, f"tick_ of {at.case}, {kind.name}"
    blank = torch.full_like(at.p, math.nan)
    got, waypoint = at.p.clone(), blank.clone()
    at.tick(got, kind, None, rule, waypoint=waypoint)
    want, want_way = at.tick_reference(torch.float64, kind, rule)
    stored = at.p.dtype != torch.float64 or at.d.dtype != torch.float64
    eager, eager_way = at.tick_reference(None, kind, rule) if stored else (want, want_way)
    moved = covered(case, SegmentFlag.MASKED)
    same_bits(got[..., ~moved], at.p[..., ~moved], f"untouched elements of {what}")
    reach = (at.p.double().cpu().abs() + at.d.double().cpu().abs() + 1)[..., moved]
    twice_the_eager_error(got[..., moved], eager[..., moved], want[..., moved], reach, what)
    pair = eager_way[..., moved], want_way[..., moved]
    twice_the_eager_error(waypoint[..., moved], *pair, reach, f"waypoint of {what}")

    def again(gate: Tensor | None, result: int = 0, with_waypoint: bool = False, **more: Any) -> Tensor:
        p, there = at.p.clone(), blank.clone()
        at.tick(p, kind, gate, rule, waypoint=there if with_waypoint else None, **more)
        return (p, there)[result]

    same_bits(again(None), got, f"second run, without waypoint, of {what}")
    d = at.d if kind == Destination.POINT else None
    measured = ops.moments(at.p, d, at.table.segments, at.table.chunks, poisoned_scratch(case))
    same_bits(again(None, moments_in=measured), got, f"with moments_in, {what}")
    for gate in gates(case):
        if gate is not None:
            only_open_paths(case, gate, partial(again, gate), got, at.p, what)
            only_open_paths(case, gate, partial(again, gate, moments_in=measured), got, at.p, f"moments_in, {what}")
            for result, (without, before) in enumerate(((got, at.p), (waypoint, blank))):
                run = partial(again, gate, result, with_waypoint=True)
                only_open_paths(case, gate, run, without, before, f"{('p', 'waypoint')[result]} of {what}")


SETTINGS: tuple[Rule, ...] = (
    {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
    {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": False},
    {"momentum": 0.9, "weight_decay": 0.0, "nesterov": True},
)


def check_sgd(pair: Pair, device: torch.device) -> None:
    for case in of_types(pair, device):
        at = Inputs(case, poison=SegmentFlag.NONE)
        for setting in SETTINGS:
            _one_update(at, setting)


def _one_update(at: Inputs, setting: Rule) -> None:
    case, what = at.case, f"sgd_ of {at.case}, {setting}"

    def update(gate: Tensor | None, result: int | None = None) -> Any:
        p, buffer = at.p.clone(), at.buffer.clone()
        table = at.table.segments, at.table.chunks
        ops.sgd_(p, at.g, buffer if setting["momentum"] else None, at.lr, *table, gate, **setting)
        return (p, buffer) if result is None else (p, buffer)[result]

    got, got_buffer = update(None)
    want, want_buffer = at.update_reference(torch.float64, setting)
    eager, eager_buffer = at.update_reference(case.dtype, setting)
    trained = covered(case, SegmentFlag.FROZEN)
    reach = (at.p.double().cpu().abs() + at.g.double().cpu().abs() + at.buffer.double().cpu().abs())[..., trained]
    for name, value, before, spec, exact in (
        ("p", got, at.p, eager, want),
        ("momentum buffer", got_buffer, at.buffer, eager_buffer, want_buffer),
    ):
        same_bits(value[..., ~trained], before[..., ~trained], f"untouched elements of {name} of {what}")
        pair = spec[..., trained], exact[..., trained]
        twice_the_eager_error(value[..., trained], *pair, reach, f"{name} of {what}")
    for gate in gates(case):
        if gate is None:
            continue
        for result, (without, before) in enumerate(((got, at.p), (got_buffer, at.buffer))):
            only_open_paths(case, gate, partial(update, gate, result), without, before, what)


def check_loss_gate(device: torch.device) -> None:
    paths, rounds = 3, 2
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        got, want = gate_state(rounds, paths, device), gate_state(rounds, paths)
        for i in range(10):
            loss = torch.tensor([1 / (i + 1), 2.0, math.inf if i < 3 else 0.25], dtype=dtype)
            ops.loss_gate_(got, loss.to(device), threshold=0.5, window=rounds, max_steps=6)
            loss_gate_eager(want, loss, threshold=0.5, window=rounds, max_steps=6)
            same_bits(got, want, f"loss_gate_ after round {i}, {dtype}")


def check_counter_randint(device: torch.device) -> None:
    """The very integers of the specification, for one path and several, with and without a gate."""
    for paths, bounds in ((None, [60_000]), (3, [50_000, 1 << 20, 5, 1 << 31])):
        for columns in (1, 300):
            shape = (len(bounds), columns) if paths is None else (paths, len(bounds), columns)
            key = torch.tensor(0xFEDCBA98) if paths is None else torch.arange(paths) * 0x3FFFFFFF
            first, state = torch.full_like(key, (5 << 32) + 3), gate_state(2, paths)
            state[..., STEPS] = 7.0
            for gate in (None, state):
                got, want = torch.full(shape, -1, device=device), torch.full(shape, -2)
                given = [tensor if tensor is None else tensor.to(device) for tensor in (key, first, gate)]
                ops.counter_randint_(got, *given, bounds=bounds)
                counter_randint_eager(want, key, first, gate, bounds=bounds)
                same_bits(got, want, f"counter_randint_ of {list(shape)}")


def check_relu_pool_bounds(device: torch.device) -> None:
    """The bits of the specification; where its radius is no number, this one is none."""
    windows: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
        ((3, 5, 12, 70), {"kernel": (2, 2), "stride": (2, 2)}),
        ((2, 3, 9, 39), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "ceil_mode": True}),
        ((7, 300), {}),
    )
    options = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    for dtype in (torch.float32, torch.float64):
        for shape, window in windows:
            generator = torch.Generator().manual_seed(len(shape))
            scale = 10.0 ** torch.randint(-20, 20, shape, generator=generator)
            left, right, radius = (torch.randn(shape, dtype=dtype, generator=generator) * scale for _ in range(3))
            left.view(-1)[11], right.view(-1)[-3] = math.inf, math.nan
            for radii in (radius.abs(), radius[:1].abs()):
                for slope in (0.0, 0.1, 1.0):
                    given, rest = (left, right, radii), options | window
                    want = relu_pool_bounds_eager(*given, slope, **rest)
                    got = [value.cpu() for value in ops.relu_pool_bounds(*(v.to(device) for v in given), slope, **rest)]
                    finite = want[2].isfinite()
                    assert torch.equal(got[2].isfinite(), finite), (
                        f"relu_pool_bounds of {list(shape)}: other finite radii"
                    )
                    for one, other in zip(got, want, strict=True):
                        same_bits(one[finite] + 0.0, other[finite] + 0.0, f"relu_pool_bounds of {list(shape)}, {dtype}")


def check_rows(pair: Pair, device: torch.device) -> None:
    """Each row of [K, N] has the bits of its own [N], also where its address is less aligned."""
    for case in of_types(pair, device):
        if case.paths is None:
            continue
        at = Inputs(case)
        together = at.p.clone()
        at.tick(together, Destination.POINT, None, RULES[0])
        for k in range(case.paths):
            alone = at.p[k].clone()
            table = (at.table.segments, at.table.chunks)
            ops.tick_(alone, at.d[k].contiguous(), *table, at.target[k].contiguous(), at.step, **RULES[0])
            same_bits(together[k], alone, f"row {k} of {case}")


# ---- what a GPU cannot look at before the launch, and what a launch cannot be


#: Counts of rounds that no sequence of losses leads to.
DAMAGED = (math.nan, math.inf, -1.0, 2.5, 2.0**53 + 2)


def check_damaged_gate(device: torch.device, looks: bool | None = None) -> None:
    """A row with such a count closes and its mean becomes NaN, nothing else is written; counter_randint_ takes it as 0.

    Where the op ``looks``, on the CPU, it refuses.
    """
    looks = device.type == "cpu" if looks is None else looks
    paths, rounds = len(DAMAGED) + 1, 3
    around = torch.full((paths + 2, 4 + rounds), 7.0, dtype=torch.float64, device=device)
    state = around[1:-1]
    state.copy_(gate_state(rounds, paths))
    state[: len(DAMAGED), STEPS] = torch.tensor(DAMAGED, dtype=torch.float64, device=device)
    want = around.cpu().clone()
    loss = torch.full((paths,), 0.25, device=device)
    drawn, zeros = torch.full((paths, 1, 9), -1, device=device), torch.zeros(paths, dtype=torch.int64, device=device)
    gated: dict[str, Callable[[], None]] = {
        "counter_randint_": lambda: ops.counter_randint_(drawn, zeros, zeros, state, bounds=[1000]),
        "loss_gate_": lambda: ops.loss_gate_(state, loss, threshold=0.1, window=rounds, max_steps=9),
    }
    for name, call in gated.items():
        try:
            call()
        except LLPFError:
            assert looks, f"{name} looked at a gate on the device"
        else:
            assert not looks, f"{name} took a damaged gate on the CPU"
    if looks:
        return
    same_bits(drawn, drawn[-1:].expand(paths, 1, 9), "counter_randint_ by a damaged gate")
    want[1:-2, [ACTIVE, FINAL]], want[1:-2, MEAN] = 0.0, math.nan
    loss_gate_eager(want[-2:-1], loss[:1].cpu(), threshold=0.1, window=rounds, max_steps=9)
    where = torch.isnan(want)
    assert torch.equal(around.cpu().isnan(), where), "loss_gate_ of a damaged gate: NaN in other places"
    same_bits(around.cpu()[~where], want[~where], "loss_gate_ of a damaged gate")


#: More paths than a grid's second and third axis have blocks (65,535), in rows that repeat every seven; and on a CPU,
#: whose eager kernels look at each.
MANY, MANY_ON_A_CPU, DISTINCT = 70_000, 700, 7


def check_grid_limits(device: torch.device) -> None:
    """More paths, or columns of a draw, than an axis of a grid holds: right, or refused with nothing written."""
    table = SegmentTable.from_lengths((3, 20)).to(device)
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(3, DISTINCT, table.numel, generator=generator).to(device)
    paths = MANY if device.type == "cuda" else MANY_ON_A_CPU
    many = few.repeat(1, paths // DISTINCT, 1)
    maps = torch.rand(DISTINCT, 2, 5, dtype=torch.float64, generator=generator).to(device)
    rate = torch.full((1,), 0.1, dtype=torch.float64, device=device)
    losses = torch.rand(DISTINCT, generator=generator).to(device)
    walk = table.segments, table.chunks
    rule: Rule = {"threshold": 0.1, "window": 2, "max_steps": 9}

    def moments(rows: Tensor) -> Tensor:
        return ops.moments(rows[0], rows[1], *walk, table.scratch(rows.shape[1]))

    def affine(rows: Tensor) -> Tensor:
        p = rows[0].clone()
        ops.affine_(p, rows[1], maps.repeat(rows.shape[1] // DISTINCT, 1, 1), *walk)
        return p

    def tick(rows: Tensor) -> Tensor:
        p = rows[0].clone()
        target = torch.ones(rows.shape[1], 2, dtype=torch.float64, device=device)
        step = torch.tensor([0.01, 0.1], dtype=torch.float64, device=device)
        ops.tick_(p, rows[1], *walk, target, step, scratch=table.scratch(rows.shape[1]))
        return p

    def sgd(rows: Tensor) -> Tensor:
        p = rows[0].clone()
        ops.sgd_(p, rows[1], rows[2].clone(), rate, *walk, momentum=0.9)
        return p

    def loss_gate(rows: Tensor) -> Tensor:
        state = gate_state(2, rows.shape[1], device)
        ops.loss_gate_(state, losses.repeat(rows.shape[1] // DISTINCT), **rule)
        return state

    def counter_randint(rows: Tensor) -> Tensor:
        key = torch.arange(DISTINCT, device=device).repeat(rows.shape[1] // DISTINCT)
        out = torch.full((rows.shape[1], 2, 3), -1, device=device)
        ops.counter_randint_(out, key, torch.zeros_like(key), bounds=[1000, 5])
        return out

    for call in (moments, affine, tick, sgd, loss_gate, counter_randint):
        want = call(few)
        try:
            got = call(many)
        except LLPFError:
            continue
        same_bits(got, want.repeat(paths // DISTINCT, *[1] * (want.dim() - 1)), f"{call.__name__} of {paths} paths")
    columns = (1 << 24) + 5 if device.type == "cuda" else 1 << 10
    out, key = torch.full((1, columns), -1, device=device), torch.tensor(3, device=device)
    want = out.clone()
    with contextlib.suppress(LLPFError):
        ops.counter_randint_(out, key, key, bounds=[1000])
        counter_randint_eager(want, key, key, None, bounds=[1000])
    assert torch.equal(out, want), f"counter_randint_ of {columns} columns"


# ---- streams, graphs, memory, devices


def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise NotHere("needs a CUDA device")


def _iteration(at: Inputs) -> tuple[Callable[[], None], list[Tensor]]:
    """The device side of one correction and tick over static tensors, and the tensors that it writes."""
    p, buffer, waypoint = at.p.clone(), at.buffer.clone(), at.p.clone()
    paths = at.case.paths or 1
    state = gate_state(3, paths, p.device)
    loss = torch.full((paths,), 0.5, device=p.device)
    scratch, table = at.table.scratch(paths), (at.table.segments, at.table.chunks)

    def run() -> None:
        ops.loss_gate_(state, loss, threshold=0.1, window=3, max_steps=100)
        ops.sgd_(p, at.g, buffer, at.lr, *table, state, momentum=0.9)
        at.tick(p, Destination.POINT, None, RULES[0], waypoint=waypoint, scratch=scratch)

    return run, [p, buffer, waypoint, state]


def _captured(run: Callable[[], None], **arguments: Any) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    return capture(run, torch.device("cuda", torch.cuda.current_device()), **arguments)


def check_graph(device: torch.device) -> None:
    """Capture, then replay three times: the bits of four direct runs (one was the warm-up)."""
    needs_cuda(device)
    for case in float32(device):
        direct, want = _iteration(Inputs(case, SegmentFlag.NONE))
        for _ in range(4):
            direct()
        run, got = _iteration(Inputs(case, SegmentFlag.NONE))
        graph = _captured(run)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            same_bits(one, other, f"tensor {i} after replays of {case}")


def check_streams(device: torch.device) -> None:
    """The kernels run on the current stream: work queued there before them is done when they start."""
    needs_cuda(device)
    case = cases()[0].on(device)
    at = Inputs(case)
    want = at.p.clone()
    at.tick(want, Destination.POINT, None, RULES[0])
    side, p, scratch = torch.cuda.Stream(), torch.full_like(at.p, math.nan), poisoned_scratch(case)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        p.copy_(at.p)
        at.tick(p, Destination.POINT, None, RULES[0], scratch=scratch)
    side.synchronize()
    same_bits(p, want, "tick_ on a side stream")


def check_devices(device: torch.device) -> None:
    """Tensors of another device are refused by name; with two GPUs, ops run where their tensors are."""
    needs_cuda(device)
    state, key = gate_state(2, None, device), torch.tensor(3, device=device)
    drawn = torch.full((1, 9), -1, device=device)
    for name, call in {
        "loss_gate_": lambda: ops.loss_gate_(state, torch.ones(()), threshold=0.1, window=2, max_steps=9),
        "counter_randint_ with a key": lambda: ops.counter_randint_(drawn, key.cpu(), key, state, bounds=[1000]),
        "counter_randint_ with a gate": lambda: ops.counter_randint_(drawn, key, key, state.cpu(), bounds=[1000]),
    }.items():
        try:
            call()
        except LLPFError:
            continue
        raise AssertionError(f"{name} on the CPU beside tensors on {device} was taken")
    assert bool((drawn == -1).all()), "a refused counter_randint_ wrote"
    if torch.cuda.device_count() < 2:
        return
    here, there = torch.device("cuda", torch.cuda.current_device()), torch.device("cuda", torch.cuda.device_count() - 1)
    results = []
    for where in (here, there):
        run, written = _iteration(Inputs(cases()[1].on(where), SegmentFlag.NONE))
        run()
        out, own = torch.full((1, 300), -1, device=where), torch.tensor(3, device=where)
        ops.counter_randint_(out, own, own, bounds=[1000])
        results.append([*written, out])
        assert torch.cuda.current_device() == here.index, "an op left another device current"
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        same_bits(other, one, f"tensor {i} on {there}, {here} being current")


def check_no_synchronisation(device: torch.device) -> None:
    needs_cuda(device)
    run, _ = _iteration(Inputs(cases()[1].on(device)))
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_allocation(device: torch.device) -> None:
    """Steady state: ops in place allocate nothing, the others their result."""
    needs_cuda(device)
    at = Inputs(cases()[0].on(device))
    scratch, table = at.table.scratch(), (at.table.segments, at.table.chunks)
    run, _ = _iteration(at)
    measured = ops.moments(at.p, at.d, *table, scratch)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "loss_gate_, sgd_ and tick_": (run, 0),
        "moments": (lambda: ops.moments(at.p, at.d, *table, scratch), 1),
        "coefficients": (lambda: ops.coefficients(measured, at.table.segments, at.target, at.step), 1),
    }
    for name, (call, expected) in calls.items():
        call()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        call()
        made = torch.cuda.memory_stats()["allocation.all.allocated"] - before
        assert made == expected, f"{name}: {made} allocations, expected {expected}"


def launches(run: Callable[[], object]) -> int:
    """Kernels that a call queues, counted in a captured graph."""
    runtime = ctypes.CDLL(f"libcudart.so.{(torch.version.cuda or '13').split('.')[0]}")
    graph = _captured(lambda: (run(), None)[1], keep_graph=True)
    count = ctypes.c_size_t()
    error = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    assert error == 0, f"cudaGraphGetNodes: error {error}"
    return count.value


#: Launches of a call at most: one path, a table that fits on the chip.
LAUNCHES = {
    "cuda": {
        "moments": 2,
        "coefficients": 1,
        "affine_": 1,
        "tick_": 1,
        "sgd_": 1,
        "loss_gate_": 1,
        "counter_randint_": 1,
        "relu_pool_bounds": 1,
    },
    "triton": {
        "moments": 3,
        "coefficients": 1,
        "affine_": 1,
        "tick_": 3,
        "sgd_": 1,
        "loss_gate_": 1,
        "counter_randint_": 1,
        "relu_pool_bounds": 1,
    },
}


def count_launches(device: torch.device) -> dict[str, int]:
    at = Inputs(cases()[0].on(device))
    p, state = at.p.clone(), gate_state(3, None, device)
    scratch, table, loss = at.table.scratch(), (at.table.segments, at.table.chunks), torch.zeros((), device=device)
    measured = ops.moments(at.p, at.d, *table, scratch)
    maps = ops.coefficients(measured, at.table.segments, at.target, at.step)
    drawn, key = torch.zeros(2, 64, dtype=torch.int64, device=device), torch.tensor(3, device=device)
    images = torch.ones(2, 3, 8, 8, device=device)
    calls: dict[str, Callable[[], object]] = {
        "moments": lambda: ops.moments(p, at.d, *table, scratch),
        "coefficients": lambda: ops.coefficients(measured, at.table.segments, at.target, at.step),
        "affine_": lambda: ops.affine_(p, at.d, maps, *table),
        "tick_": lambda: at.tick(p, Destination.POINT, None, RULES[0], scratch=scratch),
        "sgd_": lambda: ops.sgd_(p, at.g, at.buffer, at.lr, *table, momentum=0.9),
        "loss_gate_": lambda: ops.loss_gate_(state, loss, threshold=0.1, window=3, max_steps=9),
        "counter_randint_": lambda: ops.counter_randint_(drawn, key, key, state, bounds=[1000, 5]),
        "relu_pool_bounds": lambda: ops.relu_pool_bounds(images, images, images, 0.0, (2, 2), (2, 2)),
    }
    return {name: launches(call) for name, call in calls.items()}


def check_launches(device: torch.device) -> dict[str, int]:
    from llpf_fast.ops.backend import in_use

    needs_cuda(device)
    allowed, counted = LAUNCHES[in_use()["cuda"]], count_launches(device)
    over = {name: count for name, count in counted.items() if count > allowed[name]}
    assert not over, f"launches {over}, allowed {allowed}"
    return counted


def on_a_gpu(check: Callable[[torch.device], Any]) -> Callable[[torch.device], Any]:
    """``check`` behind :func:`needs_cuda`."""

    def checked(device: torch.device) -> Any:
        needs_cuda(device)
        return check(device)

    return checked


# ---- the list

Run = Callable[[torch.device], Any]


def _units() -> dict[str, Run]:
    # What Triton compiles longest comes first, so that the others find it compiled.
    units: dict[str, Run] = {}
    for kind in Destination:
        for number, rule in enumerate(RULES):
            units[f"coefficients: {kind.name}, rule {number}"] = partial(check_coefficients, kind, rule)
    for name, check in (("sgd", check_sgd), ("moments", check_moments), ("affine", check_affine)):
        units |= {f"{name}: {named(pair)}": partial(check, pair) for pair in PAIRS}
    units |= {
        "graph": check_graph,
        "streams": check_streams,
        "devices": check_devices,
        "no_synchronisation": check_no_synchronisation,
        "no_allocation": check_no_allocation,
        "launches": check_launches,
        "loss_gate": check_loss_gate,
        "counter_randint": check_counter_randint,
        "relu_pool_bounds": check_relu_pool_bounds,
        "damaged_gate": check_damaged_gate,
        "grid_limits": check_grid_limits,
    }
    for kind in Destination:
        for pair in PAIRS if kind == Destination.POINT else PAIRS[:1]:
            units[f"tick: {kind.name}, {named(pair)}"] = partial(check_tick, kind, pair)
    return units | {f"rows: {named(pair)}": partial(check_rows, pair) for pair in PAIRS}


#: The captured iteration of a correction. Its times mean something, so nothing should run beside it. What might never
#: end comes last.
CAPTURED: dict[str, Run] = {
    "captured_values": on_a_gpu(captured_checks.check_captured_values),
    "captured_bits": on_a_gpu(captured_checks.check_captured_bits),
    "closed_gate": on_a_gpu(captured_checks.check_closed_gate),
    "steady_replays": on_a_gpu(captured_checks.check_steady_replays),
    "captured_nodes": on_a_gpu(lambda device: captured_checks.check_nodes(device, launches)),
    "stacked_replays": on_a_gpu(captured_checks.check_stacked_replays),
    "stacked_rows": on_a_gpu(captured_checks.check_stacked_rows),
    "failing_capture": on_a_gpu(captured_checks.check_a_failing_capture_goes_on),
    "while_graph": on_a_gpu(captured_checks.check_while_graph),
}
OPS = _units()
#: Every unit by its name: the check, and after a colon the group of cases.
UNITS: dict[str, Run] = CAPTURED | OPS
SETS = {"captured": tuple(CAPTURED), "ops": tuple(OPS), "all": tuple(UNITS)}


def run_unit(name: str, backend: str, device: str | torch.device) -> dict[str, Any]:
    """Run one unit with one backend in force, to its end on the device; what it found.

    Raises:
        Unavailable: the backend does not run here.
        NotHere: the check has no meaning on this device.
    """
    device = torch.device(device)
    reason = None if backend == "auto" else why_not(backend, device.type)
    if reason is not None:
        raise Unavailable(reason)
    with use_backend(backend):
        found = UNITS[name](device)
        if device.type == "cuda":
            torch.cuda.synchronize()  # a fault in a kernel belongs to this unit
    return {} if found is None else {"found": found}


def run_check(name: str, backend: str, device: torch.device) -> None:
    """All units of one check."""
    for unit in UNITS:
        if unit.split(":")[0] == name:
            run_unit(unit, backend, device)
