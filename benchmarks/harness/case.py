"""A case: what is timed on which tensors, what it must move, and the contenders that are timed beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llpf_fast.errors import LLPFError

#: Name of the op itself among the contenders; every other one is a baseline.
OURS = "llpf_fast"


class WrongResultError(LLPFError):
    """A contender whose result is not the reference's; nothing of its case is timed."""


@dataclass(frozen=True)
class Cost:
    """What one call must do at least.

    Attributes:
        touched: bytes, each input once and each output once: what a call on cold memory cannot avoid.
        read, triad: bytes of the floor that the time is compared with: those that stream in at the read bandwidth
            (the reduction pass of a tick) and those at the bandwidth of an in-place triad. A model too large for the
            caches is read twice, so read + triad may exceed touched.
        flops: additions and multiplications in the elementwise loops.
    """

    touched: int
    read: int
    triad: int
    flops: int


@dataclass
class Contender:
    """One way to do the case's work.

    Attributes:
        calls: one call on each member of the pool of inputs; cold times go through them in turn.
        error: makes one call from new values and returns its error, relative to what ``allowed`` is.
        how: asked after that: in which arithmetic the call ran, and whether captured or call by call. Contenders that
            differ in it are not timed beside each other.
        units: work units in one call, where that differs from the case's.
    """

    calls: Sequence[Callable[[], object]]
    error: Callable[[], float]
    allowed: float
    how: Callable[[], dict[str, str]] | None = None
    units: int | None = None


@dataclass
class Prepared:
    """A case with its tensors made."""

    contenders: dict[str, Contender]
    #: float32 (p, d) of each member of the pool, to measure read, triad and copy on; empty where bytes are no limit.
    streams: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    #: Work units in one call (iterations of a correction); times are given for one.
    units: int = 1
    #: The case's time as a sum over contenders, where it is not that of OURS alone.
    time_of: dict[str, int] = field(default_factory=lambda: {OURS: 1})


@dataclass(frozen=True)
class Case:
    """One entry of the registry.

    Attributes:
        op: the op (stem of its file).
        size: name of the network whose tensors it runs over.
        parameters: how many elements those have together.
        dtype: storage, "float32" or, where p and d differ, "float32/bfloat16".
        variant: what distinguishes it from the op's other cases, "" for the usual call.
        backends: implementations it is timed with, where they are available.
        caches: "warm" (one set of inputs again and again), "cold" (a pool of inputs in turn).
        threads: numbers of CPU threads.
        devices: kinds that it is timed on.
        tiers: "quick" (in ``--quick`` too), "usual", "large" (only with ``--large``).
        prepare: (device, members of the pool) -> tensors and contenders.
    """

    op: str
    size: str
    parameters: int
    dtype: str
    variant: str
    cost: Cost
    prepare: Callable[[torch.device, int], Prepared]
    backends: tuple[str, ...] = ("cpp", "cuda", "triton")
    caches: tuple[str, ...] = ("cold",)
    threads: tuple[int, ...] = (1, 2)
    devices: tuple[str, ...] = ("cpu", "cuda")
    tier: str = "usual"
    #: Bytes that one member of the pool holds.
    member_bytes: int = 0
    #: Bytes that preparing and checking needs at most.
    memory: int = 0

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.op, self.size, self.dtype, self.variant) if part)


def check(prepared: Prepared, name: str, notify: Callable[[str], None] | None = None) -> dict[str, dict[str, Any]]:
    """Every contender's error and what is allowed of it; how it ran, where it says so.

    With ``notify``, which is called with the reason, a baseline that cannot run at all (a compiler's bug) is left out.

    Raises:
        WrongResultError: one is wrong (or not a number), or ran in another way than the others.
    """
    results: dict[str, dict[str, Any]] = {}
    for who, contender in list(prepared.contenders.items()):
        try:
            error = contender.error()
        except Exception as failure:
            if notify is None or who in prepared.time_of:
                raise
            del prepared.contenders[who]
            notify(f"{name}: {who} does not run here: {type(failure).__name__}: {failure}".splitlines()[0])
            continue
        if not error <= contender.allowed:
            raise WrongResultError(
                f"{name}: {who} is wrong: error {error:.3g}, allowed {contender.allowed:.3g}; nothing is timed"
            )
        results[who] = {"error": error, "allowed": contender.allowed}
        if contender.how is not None:
            results[who]["how"] = contender.how()
    ways = {who: one["how"] for who, one in results.items() if "how" in one}
    if any(way != next(iter(ways.values())) for way in ways.values()):
        raise WrongResultError(f"{name}: contenders differ in more than what is compared: {ways}; nothing is timed")
    return results


#: One result: what was timed, how, and every figure; plain values, as they stand in the JSON file.
Row = dict[str, Any]
