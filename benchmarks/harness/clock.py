"""Times: contenders in turn, round after round, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import ceil

import torch

Calls = Sequence[Callable[[], object]]
#: Seconds a sample takes at least: a thousand times what reading the clock costs.
SAMPLE = 5e-4
#: Seconds of untimed calls before a warm sample. The contenders before it leave their data in the caches: without
#: these a sample of LeNet5's tick, 16 calls of 31 us, came out at 43 us, and with 10 calls still at 37 us.
SETTLE = 2e-3
MIN_ROUNDS, MAX_ROUNDS = 5, 40


@dataclass
class Times:
    """Seconds a call, one sample a round; ``processor``: of all threads, spent computing, over wall time.

    ``way``: on a GPU, whether a sample is a graph of so many calls, or one that the host queues.
    """

    samples: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    way: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def spread(self, scale: float = 1.0) -> dict[str, float]:
        return quartiles([sample * scale for sample in self.samples])


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and both quartiles, to five digits."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {name: float(f"{v:.5g}") for name, v in (("median", middle), ("q1", low), ("q3", high))}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Quartiles of the ratios round by round."""
    return quartiles([a / b for a, b in zip(above, below, strict=True)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def measure(
    contenders: Mapping[str, Calls], seconds: float, *, rounds: int | None = None, warm: bool = False
) -> dict[str, Times]:
    """Time every contender in about ``seconds`` altogether (at least five rounds).

    Each call takes the next member of the pool, whoever calls: no contender finds what the one before it left behind.
    ``warm``: every sample follows calls of the same contender, as in a loop of that contender alone.
    """
    turn = count()

    def sample(calls: Calls, number: int, times: Times | None = None) -> float:
        members = [calls[next(turn) % len(calls)] for _ in range(number)]
        computed, started = time.process_time(), time.perf_counter()
        for call in members:
            call()
        elapsed = time.perf_counter() - started
        if times is not None:
            times.samples.append(elapsed / number)
            times.processor.append((time.process_time() - computed) / elapsed)
        return elapsed / number

    with _undisturbed():
        numbers, settling, seconds_a_round = {}, {}, 0.0
        for name, calls in contenders.items():
            sample(calls, 1)
            once = sample(calls, 1)
            if once < SAMPLE:
                once = sample(calls, max(2, int(SAMPLE / 10 / once)))
            numbers[name] = max(1, round(SAMPLE / once))
            settling[name] = ceil(SETTLE / once) if warm else 0
            seconds_a_round += (numbers[name] + settling[name]) * once
        if rounds is None:
            rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / seconds_a_round)))
        times = {name: Times() for name in contenders}
        for _ in range(rounds):
            for name, calls in contenders.items():
                if settling[name]:
                    sample(calls, settling[name])
                sample(calls, numbers[name], times[name])
    return times


def measure_on_gpu(
    contenders: Mapping[str, Calls], device: torch.device, seconds: float, *, cold: bool
) -> dict[str, Times]:
    """The same on a GPU, by gpu/clock.py: graph replays between events, level-2 cache flushed where ``cold``.

    What waits for the device cannot be captured and is timed call by call between events; each says which.
    """
    from ..gpu.clock import WARM_CALLS, Clock

    clock = Clock(device)
    timed: dict[str, tuple[Callable[[], object], int]] = {}
    ways: dict[str, str] = {}
    seconds_a_round = 0.0
    for name, calls in contenders.items():
        number = 1 if cold else WARM_CALLS
        try:
            alone = waits(calls[0])
            timed[name] = (calls[0], 1) if alone else (clock.replay(calls[0], number), number)
        except RuntimeError:
            torch.cuda.synchronize()
            alone, timed[name] = True, (calls[0], 1)
        ways[name] = "call by call" if alone else f"graph of {number}"
        seconds_a_round += 1e-6 * clock.events(timed[name][0], flush=cold, repeats=2)[-1]
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / seconds_a_round)))
    return {
        name: Times([1e-6 * t / number for t in clock.events(call, flush=cold, repeats=rounds)], way=ways[name])
        for name, (call, number) in timed.items()
    }


def waits(call: Callable[[], object]) -> bool:
    """Whether ``call`` waits for the device. Asked before a capture: one that fails leaves torch in a strange state."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
