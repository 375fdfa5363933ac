"""Gate and time cases, one row for each combination of backend, cache and number of threads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

import torch

from llpf_fast.ops.backend import use_backend, why_not

from . import stream
from .case import OURS, Case, Prepared, Row, WrongResultError, check
from .clock import Times, measure, measure_on_gpu, quartiles, ratio
from .environment import available_bytes, pool_members

#: Left out of a quick run: seconds a call on larger networks.
SLOW = ("authors-like",)


def backends(case: Case, device: torch.device) -> list[str]:
    """Those of the case that can run here; eager where there is nothing better."""
    able = [name for name in case.backends if why_not(name, device.type) is None]
    return able or ["eager"]


def rows(
    cases: Sequence[Case],
    device: torch.device,
    *,
    seconds: float,
    threads: Sequence[int],
    quick: bool,
    notify: Callable[[str], None] = lambda text: None,
    wrong: list[WrongResultError] | None = None,
) -> Iterator[Row]:
    """Time the cases; each row is complete when it comes.

    Args:
        seconds: about how long one row's times are taken.
        threads: numbers of CPU threads to time; a case is timed with those of them that it lists.
        notify: called with what is skipped, and why.
        wrong: receives the error of a case with a wrong result, and the other cases are timed; ``None`` raises it.

    Raises:
        WrongResultError: a result is wrong.
    """
    before = torch.get_num_threads()
    try:
        for case in cases:
            if device.type not in case.devices:
                continue
            if case.memory > available_bytes(device):
                notify(f"{case.name}: skipped, needs {case.memory / 1e9:.0f} GB of memory")
                continue
            for number in [n for n in case.threads if n in threads] if device.type == "cpu" else [1]:
                torch.set_num_threads(number)
                for backend in backends(case, device):
                    with use_backend(backend):
                        for cache in case.caches:
                            pool = pool_members(case.member_bytes) if cache == "cold" and device.type == "cpu" else 1
                            try:
                                timed = row(case, device, cache == "cold", pool, seconds, quick, notify)
                            except WrongResultError as error:
                                if wrong is None:
                                    raise
                                wrong.append(error)
                                notify(str(error))
                                continue
                            yield timed | {"backend": backend, "cache": cache, "threads": number}
    finally:
        torch.set_num_threads(before)


def row(
    case: Case,
    device: torch.device,
    cold: bool,
    pool: int,
    seconds: float,
    quick: bool,
    notify: Callable[[str], None] = lambda text: None,
) -> Row:
    """One case gated and timed with the backend in use.

    Raises:
        WrongResultError: a result is wrong.
    """
    prepared = case.prepare(device, pool)
    if quick:
        prepared.contenders = {name: it for name, it in prepared.contenders.items() if name not in SLOW}
    checked = check(prepared, case.name, notify)
    gc.collect()
    copied = case.cost.read + case.cost.triad if device.type == "cuda" else None
    times = _times(prepared, device, cold, seconds, copied)
    ways = {name: times[name].way for name, contender in prepared.contenders.items() if contender.how is not None}
    if len(set(ways.values())) > 1:
        raise WrongResultError(f"{case.name}: contenders are not timed alike: {ways}")
    return {
        "op": case.op,
        "size": case.size,
        "parameters": case.parameters,
        "dtype": case.dtype,
        "variant": case.variant,
        "bytes": case.cost.touched,
        "flops": case.cost.flops,
        "pool": pool,
        "gate": checked,
    } | figures(case, prepared, times, copied)


def _times(
    prepared: Prepared, device: torch.device, cold: bool, seconds: float, copied: int | None = None
) -> dict[str, Times]:
    calls: dict[str, Sequence[Callable[[], object]]] = {
        name: contender.calls for name, contender in prepared.contenders.items()
    }
    if prepared.streams:
        of_members = [stream.streams(p, d) for p, d in prepared.streams]
        calls |= {name: [member[name] for member in of_members] for name in of_members[0]}
        calls["copy"] = [stream.copies(p, copied) for p, _ in prepared.streams]
    if device.type == "cuda":
        return measure_on_gpu(calls, device, seconds, cold=cold)
    return measure(calls, seconds, warm=not cold)


def figures(case: Case, prepared: Prepared, times: dict[str, Times], copied: int | None = None) -> Row:
    """Times in microseconds, bandwidths, the share of the floor, and how many times slower each baseline is.

    ``copied``: bytes that the copy read and wrote, where not as many as p holds.
    """
    ours = [
        sum(sign * times[name].samples[i] for name, sign in prepared.time_of.items()) / prepared.units
        for i in range(len(times[OURS].samples))
    ]
    processor = [share for contender in times.values() for share in contender.processor]
    units = {name: contender.units or prepared.units for name, contender in prepared.contenders.items()}
    row: Row = {
        "time_us": quartiles([1e6 * t for t in ours]),
        # Of one processor: below the number of threads where others had a part of the machine.
        "processors_had": round(sum(processor) / len(processor), 2) if processor else None,
        "rounds": len(ours),
        "times_us": {name: measured.spread(1e6 / units.get(name, prepared.units)) for name, measured in times.items()},
        "slower": {
            name: ratio([t / units[name] for t in times[name].samples], ours)
            for name in prepared.contenders
            if name not in prepared.time_of
        },
    }
    if times[OURS].way:
        row["timed_as"] = {name: measured.way for name, measured in times.items()}
    if len(set(units.values())) > 1:
        row["units"] = units
    if case.cost.touched:
        row["gb_per_s"] = float(f"{case.cost.touched / row['time_us']['median'] / 1e3:.4g}")
    if prepared.streams:
        row |= _bandwidths(case, prepared, times, ours, copied)
    return row


def _bandwidths(case: Case, prepared: Prepared, times: dict[str, Times], ours: list[float], copied: int | None) -> Row:
    words = prepared.streams[0][0].numel()
    copied = copied or 4 * words
    best = {
        kind: min((name for name in times if name.startswith(kind)), key=lambda name: times[name].median)
        for kind in ("read", "triad")
    }
    moved = {"read": 8 * words, "triad": 12 * words}
    floor = [
        case.cost.read / moved["read"] * read + case.cost.triad / moved["triad"] * triad
        for read, triad in zip(times[best["read"]].samples, times[best["triad"]].samples, strict=True)
    ]
    return {
        "read_gb_per_s": float(f"{moved['read'] / times[best['read']].median / 1e9:.4g}"),
        "triad_gb_per_s": float(f"{moved['triad'] / times[best['triad']].median / 1e9:.4g}"),
        "copy_gb_per_s": float(f"{copied / times['copy'].median / 1e9:.4g}"),
        "measured_by": best,
        "floor_bytes": case.cost.read + case.cost.triad,
        "floor_us": quartiles([1e6 * t for t in floor]),
        "share_of_floor": ratio(floor, ours),
        "share_of_copy": ratio([(case.cost.read + case.cost.triad) / copied * t for t in times["copy"].samples], ours),
    }
