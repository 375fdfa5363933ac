"""Stage two: each op's time, cold (level-2 cache flushed) and warm (graph replays), beside a copy of the same bytes.

No time is taken before the result is right: each call is first compared with float64 arithmetic on the same device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tables import TABLES

#: Calls in the graph whose replay is the warm time: launch gaps of single replays would be all one sees of small ops.
WARM_CALLS = 20
#: Largest accepted ||got - float64|| / ||float64|| for storage of p.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
RULE: dict[str, Any] = {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}


@dataclass
class Call:
    """One timed call: it may be made again and again, and `error` compares its first result with float64."""

    op: str
    table: str
    p: torch.dtype
    d: torch.dtype
    paths: int
    #: Bytes that the op cannot avoid: every input once, every output once; 0 where latency is all there is.
    floor: int
    run: Callable[[], object]
    error: Callable[[], float]


class Clock:
    """Times of a call in microseconds."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        size = 4 * getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20) if self.cuda else 0
        self.flusher = torch.empty(size // 4, dtype=torch.int32, device=device)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def events(self, run: Callable[[], object], *, flush: bool, repeats: int | None = None) -> list[float]:
        """Times of calls between two events each, the level-2 cache flushed before each or not."""
        pairs = []
        for _ in range(repeats or self.repeats):
            if flush:
                self.flusher.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in pairs]

    def replay(self, run: Callable[[], object], calls: int) -> Callable[[], None]:
        """``calls`` of ``run`` as one replay of a graph.

        Raises:
            RuntimeError: it cannot be captured.
        """
        from llpf_fast.correct.cuda_graph import capture

        def together() -> None:
            for _ in range(calls):
                run()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = capture(together, self.device)
        graph.replay()
        return graph.replay

    def cold(self, run: Callable[[], object]) -> list[float]:
        if not self.cuda:
            return self._host(run)
        return self.events(self.replay(run, 1), flush=True)

    def warm(self, run: Callable[[], object]) -> list[float]:
        if not self.cuda:
            return self._host(run)
        return [t / WARM_CALLS for t in self.events(self.replay(run, WARM_CALLS), flush=False)]

    def _host(self, run: Callable[[], object]) -> list[float]:
        run()
        times = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - started))
        return times

    def copy(self, moved: int) -> list[float]:
        """A device-to-device copy that reads and writes ``moved`` bytes together."""
        source = torch.randint(-9, 9, (max(moved // 8, 1),), dtype=torch.int32, device=self.device)
        to = torch.empty_like(source)
        return self.cold(lambda: to.copy_(source))


def spread(times: list[float]) -> dict[str, float]:
    """Median, and the 20th and 80th percentile."""
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 5], ordered[min(len(ordered) - 1, 4 * len(ordered) // 5)]
    return {"median": round(statistics.median(ordered), 3), "p20": round(low, 3), "p80": round(high, 3)}


# ---- what is timed


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


class Problem:
    """Random values over one table, and each op's float64 result by plain torch, segment by segment."""

    def __init__(self, name: str, p: torch.dtype, d: torch.dtype, paths: int, device: torch.device) -> None:
        from llpf_fast.flat.table import SegmentTable

        self.name, self.paths = name, paths
        self.table = SegmentTable.from_lengths(TABLES[name]()).to(device)
        shape = (self.table.numel,) if paths == 1 else (paths, self.table.numel)
        torch.manual_seed(0)
        self.p0 = torch.randn(shape, device=device, dtype=torch.float32).mul_(0.05).add_(0.01).to(p)
        self.d = torch.randn(shape, device=device, dtype=torch.float32).mul_(0.05).to(d)
        self.count = len(self.table)
        self.target = torch.full((self.count,), 0.0025, dtype=torch.float64, device=device)
        self.step = torch.tensor([0.0, 1e-3], dtype=torch.float64, device=device)
        self.lr = torch.tensor(1e-3, dtype=torch.float64, device=device)
        self.scratch = self.table.scratch(paths)
        self.elements = paths * sum(row.length for row in self.table.rows)

    def slices(self) -> Iterator[slice]:
        return (slice(row.offset, row.offset + row.length) for row in self.table.rows)

    def moments64(self, p: Tensor) -> Tensor:
        rows = []
        for part in self.slices():
            x = p[..., part].double()
            y = self.d[..., part].double() - x
            mean_x, mean_y = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
            x, y = x - mean_x, y - mean_y
            rows.append(
                torch.stack([mean_x[..., 0], mean_y[..., 0], (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)], -1)
            )
        return torch.stack(rows, -2)

    def maps64(self) -> Tensor:
        from llpf_fast.ops.coefficients import coefficients_eager

        arguments = (self.moments64(self.p0), self.table.segments, self.target, self.step, None, None)
        return coefficients_eager(*arguments, destination=0, **RULE)

    def off_by(self, got: Tensor, maps: Tensor) -> float:
        """Relative distance from a p + b d + c, over all segments."""
        above = below = 0.0
        for s, part in enumerate(self.slices()):
            a, b, c = (column[..., None] for column in maps[..., s, :3].unbind(-1))
            want = a * self.p0[..., part].double() + b * self.d[..., part].double() + c
            above += float((got[..., part].double() - want).square().sum())
            below += float(want.square().sum())
        return (above / below) ** 0.5

    def calls(self) -> Iterator[Call]:
        from llpf_fast import ops

        table, p = (self.table.segments, self.table.chunks), self.p0.clone()
        wide, narrow = p.element_size(), self.d.element_size()

        def call(op: str, words: int, run: Callable[[], object], error: Callable[[], float]) -> Call:
            return Call(op, self.name, p.dtype, self.d.dtype, self.paths, words * self.elements, run, error)

        def moved(run: Callable[[], object]) -> Callable[[], float]:
            def error() -> float:
                p.copy_(self.p0)
                run()
                return self.off_by(p, self.maps64())

            return error

        def tick() -> None:
            ops.tick_(p, self.d, *table, self.target, self.step, scratch=self.scratch, **RULE)

        yield call("tick_", 2 * wide + narrow, tick, moved(tick))

        def moments() -> Tensor:
            return ops.moments(p, self.d, *table, self.scratch)

        def moments_error() -> float:
            p.copy_(self.p0)
            got, want = moments(), self.moments64(self.p0)
            return max(relative(got[..., i], want[..., i]) for i in (0, 1, 2, 4))

        yield call("moments", wide + narrow, moments, moments_error)

        maps = self.maps64()

        def affine() -> None:
            ops.affine_(p, self.d, maps, *table)

        yield call("affine_", 2 * wide + narrow, affine, moved(affine))

        measured = self.moments64(self.p0)

        def coefficients() -> Tensor:
            return ops.coefficients(measured, self.table.segments, self.target, self.step, **RULE)

        yield call("coefficients", 0, coefficients, lambda: relative(coefficients(), maps))

        g, buffer = torch.randn_like(p), torch.zeros_like(p)

        def sgd() -> None:
            ops.sgd_(p, g, buffer, self.lr, *table, momentum=0.9)

        def sgd_error() -> float:
            p.copy_(self.p0)
            buffer.zero_()
            sgd()
            got = torch.cat([p[..., part].flatten() for part in self.slices()])
            parts = [(self.p0[..., part].double() - 1e-3 * g[..., part].double()).flatten() for part in self.slices()]
            return relative(got, torch.cat(parts))

        yield call("sgd_", 5 * wide, sgd, sgd_error)

        left = torch.zeros((*p.shape[:-1], self.count, 5), dtype=torch.float64, device=p.device)

        def sgd_moments() -> None:
            ops.sgd_(p, g, buffer, self.lr, *table, None, self.d, left, self.scratch, momentum=0.9)

        def sgd_moments_error() -> float:
            p.copy_(self.p0)
            buffer.zero_()
            sgd_moments()
            return relative(left[..., 4], self.moments64(p)[..., 4])

        yield call("sgd_ and moments", 5 * wide + narrow, sgd_moments, sgd_moments_error)


FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64


def problems(quick: bool) -> list[tuple[str, torch.dtype, torch.dtype, int, tuple[str, ...]]]:
    """Table, dtypes, paths, and the ops to time (none named: all)."""
    small = [("LeNet5", FLOAT32, FLOAT32, 1, ()), ("LeNet5", FLOAT32, FLOAT32, 8, ("tick_", "sgd_"))]
    if quick:
        return small
    return [
        *small,
        ("ResNet18", FLOAT32, FLOAT32, 1, ()),
        ("ResNet18", FLOAT32, BFLOAT16, 1, ("tick_", "moments")),
        ("ResNet18", FLOAT64, FLOAT64, 1, ("tick_",)),
        ("256Mi", FLOAT32, FLOAT32, 1, ("tick_", "moments", "affine_", "sgd_", "sgd_ and moments")),
        ("256Mi", FLOAT32, BFLOAT16, 1, ("tick_",)),
    ]


def run(backend: str, device: str, deadline: float, only: str, emit: Callable[[dict[str, Any]], None]) -> None:
    """Emit the copy bandwidth, then one row a call; ``only`` limits the ops to one."""
    from llpf_fast.ops.backend import use_backend, why_not

    reason = why_not(backend, device)
    if reason is not None:
        emit({"backend": backend, "result": "skipped", "why": reason})
        return
    on = torch.device(device)
    clock = Clock(on, repeats=50 if on.type == "cuda" else 3)
    bytes_of_copy = 2 << 30 if on.type == "cuda" else 2 << 24
    copied = spread(clock.copy(bytes_of_copy))
    emit(
        {
            "copy_bytes": bytes_of_copy,
            "copy_us": copied,
            "copy_gb_per_s": round(bytes_of_copy / copied["median"] / 1e3, 1),
        }
    )
    for name, p, d, paths, ops_named in problems(quick=on.type != "cuda"):
        if time.monotonic() > deadline:
            emit({"backend": backend, "table": name, "result": "skipped", "why": "the stage's time was up"})
            continue
        with use_backend(backend):
            for call in Problem(name, p, d, paths, on).calls():
                if (ops_named and call.op not in ops_named) or (only and call.op != only):
                    continue
                emit(measured(backend, call, clock))


def measured(backend: str, call: Call, clock: Clock) -> dict[str, Any]:
    row: dict[str, Any] = {
        "backend": backend,
        "op": call.op,
        "table": call.table,
        "p": str(call.p).removeprefix("torch."),
        "d": str(call.d).removeprefix("torch."),
        "paths": call.paths,
    }
    error = call.error()
    row["error"] = error
    # Moments and coefficients are float64 whatever the storage.
    allowed = 1e-9 if call.op in ("moments", "coefficients", "sgd_ and moments") else TOLERANCE[call.p]
    if not error <= allowed:
        return row | {"result": "wrong", "why": f"relative error {error:.2e}, allowed {allowed:.0e}; not timed"}
    row |= {"result": "timed", "cold_us": spread(clock.cold(call.run)), "warm_us": spread(clock.warm(call.run))}
    if call.floor:
        copied = statistics.median(clock.copy(call.floor))
        cold = row["cold_us"]["median"]
        row |= {
            "floor_bytes": call.floor,
            "gb_per_s": round(call.floor / cold / 1e3, 1),
            "copy_of_floor_us": round(copied, 3),
            "share_of_copy": round(copied / cold, 3),
        }
    return row
