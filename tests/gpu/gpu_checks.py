"""What the GPU backends must do, as plain functions: pytest runs them, and so does benchmarks/gpu_check.py without it.

Each check takes the name of a backend and a device, and raises AssertionError. On the CPU (the harness's own test) the
checks of streams, graphs and the allocator raise NotHere.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import captured_checks
import torch
from gpu_cases import PAIRS, Case, cases, destination, gates, per_variance_group, poisoned_scratch, values
from torch import Tensor

from llpf_fast import ops
from llpf_fast.correct.cuda_graph import capture
from llpf_fast.ops import Destination, SegmentFlag, gate_state
from llpf_fast.ops.backend import use_backend
from llpf_fast.ops.coefficients import coefficients_eager
from llpf_fast.ops.draw import draw_eager
from llpf_fast.ops.loss_gate import loss_gate_eager
from llpf_fast.ops.moments import moments_eager
from llpf_fast.ops.sgd import sgd_eager
from llpf_fast.ops.tick import tick_eager

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
RULES: tuple[dict[str, Any], ...] = (
    {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True},
    {"epsilon": 1e-4, "combine_sum": False, "clamp": False, "project_first": False},
)
SPHERES = (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)


class NotHere(Exception):  # noqa: N818  (not an error: the check has no meaning on this device)
    """The check needs a CUDA device."""


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


def all_types(device: torch.device) -> Iterator[Case]:
    for case in cases():
        for p, d in PAIRS:
            yield case.with_dtypes(p, d).on(device)


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
        return {"target_variance": self.target, "step": self.step, "gate": gate, "radius": radius, "destination": kind}

    def moments64(self, p: Tensor, with_d: bool = True) -> Tensor:
        d = self.d.double().cpu() if with_d else None
        return moments_eager(
            p.double().cpu(), d, self.cpu.segments, self.cpu.chunks, poisoned_scratch(on_cpu(self.case))
        )

    def tick(self, p: Tensor, kind: Destination, gate: Tensor | None, rule: dict[str, Any], **more: Any) -> None:
        d = self.d if kind == Destination.POINT else None
        if "scratch" not in more:
            more["scratch"] = poisoned_scratch(self.case)
        ops.tick_(p, d, self.table.segments, self.table.chunks, **self.rule(kind, gate), **rule, **more)

    def tick_reference(
        self, dtype: torch.dtype | None, kind: Destination, gate: Tensor | None, rule: dict[str, Any], waypoint: Tensor
    ) -> Tensor:
        """The specification on the CPU, in ``dtype`` (``None``: the storage types as they are)."""
        p = self.p.cpu().to(dtype or self.p.dtype, copy=True)
        d = None if kind != Destination.POINT else self.d.cpu() if dtype is None else self.d.cpu().to(dtype)
        common = self.rule(kind, gate)
        tensors = [
            v if v is None else v.cpu() for v in (common[n] for n in ("target_variance", "step", "gate", "radius"))
        ]
        scratch = poisoned_scratch(on_cpu(self.case))
        given = [p, d, self.cpu.segments, self.cpu.chunks, *tensors, None, waypoint, scratch]
        tick_eager(*given, destination=int(kind), **rule)
        return p


def twice_the_eager_error(got: Tensor, eager: Tensor, want: Tensor, reach: Tensor, what: str) -> None:
    """No further from float64 than twice eager's own distance, plus a unit in the last place of the storage."""
    unit = max(torch.finfo(got.dtype).eps, 1e-11)
    error = (eager.double() - want).abs().nan_to_num(0.0)
    close(got, want, 2 * error.max() + unit * reach, what)


# ---- values


def check_moments(device: torch.device) -> None:
    for case in all_types(device):
        at = Inputs(case)
        for with_d in (True, False):
            d = at.d if with_d else None
            got = ops.moments(at.p, d, at.table.segments, at.table.chunks, poisoned_scratch(case))
            want = at.moments64(at.p, with_d)
            n = at.cpu.segments[:, 1].double()
            deviation = (want[..., 2] / n).sqrt() + (want[..., 4] / n).sqrt()
            mean = want[..., 0].abs() + want[..., 1].abs() + deviation
            mixed = (want[..., 2] * want[..., 4]).sqrt()
            scale = torch.stack([mean, mean, want[..., 2], mixed, want[..., 4]], -1)
            close(got, want, 1e-11 * scale, f"moments of {case}")


def check_coefficients(device: torch.device) -> None:
    for case in float32(device):
        at = Inputs(case)
        for kind in Destination:
            measured = at.moments64(at.p, kind == Destination.POINT)
            for gate in gates(case):
                for rule in RULES:
                    arguments = at.rule(kind, gate)
                    got = ops.coefficients(measured.to(device), at.table.segments, **arguments, **rule)
                    plain: dict[str, Any] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
                    plain["destination"] = int(kind)
                    want = coefficients_eager(measured, at.cpu.segments, **plain, **rule)
                    close(got, want, 1e-11 * (1 + want.abs()), f"coefficients of {case}, {kind.name}")


def check_affine(device: torch.device) -> None:
    for case in all_types(device):
        at = Inputs(case)
        maps = torch.rand(
            (*case.shape()[:-1], len(case.table), 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        maps[..., 0, :3] = torch.tensor([1.0, 0.0, 0.0])  # every bit stays
        maps[..., 1, 1] = 0.0  # d is not read
        maps = maps.to(device)
        d = at.d.clone()
        second = case.table.rows[1]
        d[..., second.offset : second.offset + second.length] = math.nan
        got = at.p.clone()
        ops.affine_(got, d, maps, at.table.segments, at.table.chunks)
        p64, d64 = at.p.double().cpu(), d.double().cpu()
        want, same = p64.clone(), ~covered(case, SegmentFlag.MASKED)
        for s, row in enumerate(case.table.rows):
            part = slice(row.offset, row.offset + row.length)
            a, b, c = (column[..., None] for column in maps[..., s, :3].cpu().unbind(-1))
            want[..., part] = a * p64[..., part] + torch.where(b == 0, 0.0, b * d64[..., part]) + c
            if s == 0:
                same[part] = True
        same_bits(got[..., same], at.p[..., same], f"untouched elements of affine_ of {case}")
        reach = p64.abs() + d64.abs().nan_to_num(0.0) + 1
        unit = max(torch.finfo(case.dtype).eps, 1e-14)
        close(got[..., ~same], want[..., ~same], 2 * unit * reach.expand_as(want)[..., ~same], f"affine_ of {case}")


def check_tick(device: torch.device) -> None:
    for case in all_types(device):
        at = Inputs(case)
        kinds = Destination if case.dtype == torch.float32 == case.d_dtype else (Destination.POINT,)
        for kind in kinds:
            for gate in gates(case):
                for rule in RULES:
                    _one_tick(at, kind, gate, rule)


def _one_tick(at: Inputs, kind: Destination, gate: Tensor | None, rule: dict[str, Any]) -> None:
    case, what = at.case, f"tick_ of {at.case}, {kind.name}"
    blank = torch.full_like(at.p, math.nan)
    got, waypoint = at.p.clone(), blank.clone()
    at.tick(got, kind, gate, rule, waypoint=waypoint)
    want_way, eager_way = blank.double().cpu(), blank.cpu()
    want = at.tick_reference(torch.float64, kind, gate, rule, want_way)
    eager = at.tick_reference(None, kind, gate, rule, eager_way)
    moved = covered(case, SegmentFlag.MASKED)
    same_bits(got[..., ~moved], at.p[..., ~moved], f"untouched elements of {what}")
    reach = at.p.double().cpu().abs() + at.d.double().cpu().abs() + 1
    twice_the_eager_error(got[..., moved], eager[..., moved], want[..., moved], reach[..., moved], what)
    rows = got.reshape(-1, got.shape[-1])
    for k in range(len(rows)):
        is_open = gate is None or bool(gate.reshape(len(rows), -1)[k, 0] != 0)
        there = waypoint.reshape(rows.shape)[k]
        if not is_open:
            same_bits(rows[k], at.p.reshape(rows.shape)[k], f"closed path of {what}")
            same_bits(there, blank.reshape(rows.shape)[k], f"waypoint of a closed path of {what}")
            continue
        args = (eager_way.reshape(rows.shape)[k, moved], want_way.reshape(rows.shape)[k, moved])
        twice_the_eager_error(there[moved], *args, reach.reshape(rows.shape)[k, moved], f"waypoint of {what}")
    again = at.p.clone()
    at.tick(again, kind, gate, rule)
    same_bits(again, got, f"second run, without waypoint, of {what}")
    measured = ops.moments(
        at.p, at.d if kind == Destination.POINT else None, at.table.segments, at.table.chunks, poisoned_scratch(case)
    )
    again = at.p.clone()
    at.tick(again, kind, gate, rule, moments_in=measured)
    same_bits(again, got, f"with moments_in, {what}")


def check_sgd(device: torch.device) -> None:
    settings: tuple[dict[str, Any], ...] = (
        {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        {"momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-3, "nesterov": False},
        {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": True},
    )
    for case in all_types(device):
        at = Inputs(case, poison=SegmentFlag.NONE)
        for gate in gates(case):
            for setting in settings:
                _one_update(at, gate, setting)


def _one_update(at: Inputs, gate: Tensor | None, setting: dict[str, Any]) -> None:
    case, what = at.case, f"sgd_ of {at.case}, {setting}"
    if gate is not None:
        gate = gate.clone()
        gate[0, 1] = 1.0
    shape = (*case.shape()[:-1], len(case.table), 5)
    left = torch.full(shape, 7.0, dtype=torch.float64, device=at.p.device)
    p, buffer = at.p.clone(), at.buffer.clone() if setting["momentum"] else None
    table = (at.table.segments, at.table.chunks)
    ops.sgd_(p, at.g, buffer, at.lr, *table, gate, at.d, left, poisoned_scratch(case), **setting)
    results = []
    for dtype in (torch.float64, case.dtype):
        q, moving = at.p.cpu().to(dtype, copy=True), at.buffer.cpu().to(dtype, copy=True)
        closing = None if gate is None else gate.cpu()
        arguments = (at.lr.cpu(), at.cpu.segments, at.cpu.chunks, closing, None, None, None)
        sgd_eager(q, at.g.cpu().to(dtype), moving if setting["momentum"] else None, *arguments, **setting)
        results.append((q, moving))
    (want, want_buffer), (eager, eager_buffer) = results
    trained = covered(case, SegmentFlag.FROZEN)
    same_bits(p[..., ~trained], at.p[..., ~trained], f"untouched elements of {what}")
    reach = at.p.double().cpu().abs() + at.g.double().cpu().abs() + at.buffer.double().cpu().abs()
    reach = reach[..., trained]
    twice_the_eager_error(p[..., trained], eager[..., trained], want[..., trained], reach, what)
    if buffer is not None:
        pair = eager_buffer[..., trained], want_buffer[..., trained]
        twice_the_eager_error(buffer[..., trained], *pair, reach, f"momentum buffer of {what}")
    measured = ops.moments(p, at.d, *table, poisoned_scratch(case)).reshape(-1, *shape[-2:])
    for k, row in enumerate(left.reshape(measured.shape)):
        state = None if gate is None else gate[k].tolist()
        leaves = state is None or (state[0] != 0 and state[1] != 0)
        if leaves:
            close(row, measured[k].cpu(), 1e-11 * (1 + measured[k].cpu().abs()), f"moments left by {what}")
        else:
            assert bool((row == 7.0).all()), f"moments of a path that goes on, {what}"


def check_loss_gate(device: torch.device) -> None:
    paths, rounds = 3, 2
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        got, want = gate_state(rounds, paths, device), gate_state(rounds, paths)
        for i in range(10):
            loss = torch.tensor([1 / (i + 1), 2.0, math.inf if i < 3 else 0.25], dtype=dtype)
            ops.loss_gate_(got, loss.to(device), threshold=0.5, min_rounds=rounds, max_rounds=6)
            loss_gate_eager(want, loss, threshold=0.5, min_rounds=rounds, max_rounds=6)
            same_bits(got, want, f"loss_gate_ after round {i}, {dtype}")


def check_rows(device: torch.device) -> None:
    """Each row of [K, N] has the bits of its own [N], also where its address is less aligned."""
    rule = RULES[0]
    for case in all_types(device):
        if case.paths is None:
            continue
        at = Inputs(case)
        together = at.p.clone()
        at.tick(together, Destination.POINT, None, rule)
        for k in range(case.paths):
            alone = at.p[k].clone()
            table = (at.table.segments, at.table.chunks)
            ops.tick_(alone, at.d[k].contiguous(), *table, at.target[k].contiguous(), at.step, **rule)
            same_bits(together[k], alone, f"row {k} of {case}")


# ---- streams, graphs, memory


def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise NotHere("needs a CUDA device")


def _iteration(at: Inputs) -> tuple[Callable[[], None], list[Tensor]]:
    """The device side of one correction and tick over static tensors, and the tensors that it writes."""
    p, buffer, waypoint = at.p.clone(), at.buffer.clone(), at.p.clone()
    paths = at.case.paths or 1
    state = gate_state(2, paths, p.device)
    loss = torch.full((paths,), 0.5, device=p.device)
    left = torch.zeros((*at.case.shape()[:-1], len(at.table), 5), dtype=torch.float64, device=p.device)
    scratch, table = at.table.scratch(paths), (at.table.segments, at.table.chunks)

    def run() -> None:
        ops.loss_gate_(state, loss, threshold=0.1, min_rounds=2, max_rounds=100)
        ops.sgd_(p, at.g, buffer, at.lr, *table, state, at.d, left, scratch, momentum=0.9)
        at.tick(p, Destination.POINT, None, RULES[0], waypoint=waypoint, scratch=scratch)

    return run, [p, buffer, waypoint, state, left]


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


def check_draw(device: torch.device) -> None:
    """The very integers of the specification, for one path and several, with and without a gate."""
    for paths, bounds in ((None, [60_000]), (3, [50_000, 1 << 20, 5, 1 << 31])):
        for columns in (1, 300):
            shape = (len(bounds), columns) if paths is None else (paths, len(bounds), columns)
            key = torch.tensor(0xFEDCBA98) if paths is None else torch.arange(paths) * 0x3FFFFFFF
            first, state = torch.full_like(key, (5 << 32) + 3), gate_state(2, paths)
            state[..., 2] = 7.0
            for gate in (None, state):
                got, want = torch.full(shape, -1, device=device), torch.full(shape, -2)
                given = [tensor if tensor is None else tensor.to(device) for tensor in (key, first, gate)]
                ops.draw_(got, *given, bounds=bounds)
                draw_eager(want, key, first, gate, bounds=bounds)
                same_bits(got, want, f"draw_ of {list(shape)}")


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
        "sgd_ and moments": 2,
        "loss_gate_": 1,
        "draw_": 1,
    },
    "triton": {
        "moments": 3,
        "coefficients": 1,
        "affine_": 1,
        "tick_": 3,
        "sgd_": 1,
        "sgd_ and moments": 3,
        "loss_gate_": 1,
        "draw_": 1,
    },
}


def count_launches(device: torch.device) -> dict[str, int]:
    at = Inputs(cases()[0].on(device))
    p, left, state = (
        at.p.clone(),
        torch.zeros(len(at.table), 5, dtype=torch.float64, device=device),
        gate_state(2, None, device),
    )
    scratch, table, loss = at.table.scratch(), (at.table.segments, at.table.chunks), torch.zeros((), device=device)
    measured = ops.moments(at.p, at.d, *table, scratch)
    maps = ops.coefficients(measured, at.table.segments, at.target, at.step)
    drawn, key = torch.zeros(2, 64, dtype=torch.int64, device=device), torch.tensor(3, device=device)
    calls: dict[str, Callable[[], object]] = {
        "moments": lambda: ops.moments(p, at.d, *table, scratch),
        "coefficients": lambda: ops.coefficients(measured, at.table.segments, at.target, at.step),
        "affine_": lambda: ops.affine_(p, at.d, maps, *table),
        "tick_": lambda: at.tick(p, Destination.POINT, None, RULES[0], scratch=scratch),
        "sgd_": lambda: ops.sgd_(p, at.g, at.buffer, at.lr, *table, momentum=0.9),
        "sgd_ and moments": lambda: ops.sgd_(
            p, at.g, at.buffer, at.lr, *table, None, at.d, left, scratch, momentum=0.9
        ),
        "loss_gate_": lambda: ops.loss_gate_(state, loss, threshold=0.1, min_rounds=2, max_rounds=9),
        "draw_": lambda: ops.draw_(drawn, key, key, state, bounds=[1000, 5]),
    }
    return {name: launches(call) for name, call in calls.items()}


def check_launches(device: torch.device) -> None:
    from llpf_fast.ops.backend import in_use

    needs_cuda(device)
    allowed, counted = LAUNCHES[in_use()["cuda"]], count_launches(device)
    over = {name: count for name, count in counted.items() if count > allowed[name]}
    assert not over, f"launches {over}, allowed {allowed}"


def on_a_gpu(check: Callable[[torch.device], None]) -> Callable[[torch.device], None]:
    """``check`` behind :func:`needs_cuda`."""

    def checked(device: torch.device) -> None:
        needs_cuda(device)
        check(device)

    return checked


#: Short ones first, then the thousands of calls of sgd_ and tick_: where the time runs out, it is in what repeats.
CHECKS: dict[str, Callable[[torch.device], None]] = {
    "moments": check_moments,
    "coefficients": check_coefficients,
    "affine": check_affine,
    "loss_gate": check_loss_gate,
    "draw": check_draw,
    "streams": check_streams,
    "graph": check_graph,
    "no_synchronisation": check_no_synchronisation,
    "no_allocation": check_no_allocation,
    "launches": check_launches,
    "captured_values": on_a_gpu(captured_checks.check_captured_values),
    "closed_gate": on_a_gpu(captured_checks.check_closed_gate),
    "steady_replays": on_a_gpu(captured_checks.check_steady_replays),
    "captured_nodes": on_a_gpu(lambda device: captured_checks.check_nodes(device, launches)),
    "while_graph": on_a_gpu(captured_checks.check_while_graph),
    "rows": check_rows,
    "sgd": check_sgd,
    "tick": check_tick,
    "failing_capture": on_a_gpu(captured_checks.check_a_failing_capture_goes_on),
}


def run_check(name: str, backend: str, device: torch.device) -> None:
    """Run one check with one backend in force."""
    with use_backend(backend):
        CHECKS[name](device)
