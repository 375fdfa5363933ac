"""Each op's time beside reading, a triad and a copy of the same bytes: cases of the registry, one row each.

No time is taken before the result is right: each op's first call is compared with float64 arithmetic on the device,
segment by segment. A case that faults or never ends takes the process with it: the cases after it have a new one.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .rows import Row, why, writer

if TYPE_CHECKING:
    import torch

    from ..harness.case import Case

#: What "3Mi" float32 p and d need, 25 MB, is near the most that the shared memory of an H100 holds.
SIZES = ("LeNet5", "1Mi", "3Mi", "ResNet18", "100M", "1B")
SMALL_SIZES = ("LeNet5", "1Mi")
#: Beyond the level-2 cache a warm call differs from a cold one in nothing.
LARGEST_WARM = 12_000_000
OPS = ("tick_", "sgd_", "moments", "affine_")
#: Seconds of one row, compiling included, after which it is held to have no end.
LONGEST = {"cuda": 20.0, "cpu": 120.0}


def cases(device: str, ops: list[str], forced: bool) -> Iterator[Case]:
    """By size, the smallest first; with a forced plan ticks alone, whose own moments it is about."""
    from ..cases import affine, correction, moments, sgd, tick
    from ..harness.sizes import parameters

    for size in SIZES if device == "cuda" else SMALL_SIZES:
        given = {"caches": ("warm", "cold") if parameters(size) < LARGEST_WARM else ("cold",)}
        if "tick_" in ops:
            yield tick.case(size, **given)
            if not forced:
                yield tick.case(size, variant="moments_in", **given)
        for op, of in (("sgd_", sgd), ("moments", moments), ("affine_", affine)):
            if op in ops:
                yield of.case(size, **given)
    if "tick_" in ops and not forced and device == "cuda":
        for dtype in ("bfloat16", "float32/bfloat16", "float64"):
            yield tick.case("ResNet18", dtype)
    if "correction" in ops:
        yield from (case for case in correction.cases() if device in case.devices)


def run(given: argparse.Namespace) -> bool:
    """Emit one row a case and cache; whether all went well."""
    import torch

    from llpf_fast.ops.backend import use_backend, why_not

    label: Row = {"backend": given.backend, "tick": given.tick}
    emit = writer(given.to, "times", line)
    reason = why_not(given.backend, given.device)
    if reason is not None:
        emit(label | {"result": "skipped", "why": reason})
        return False
    device, good = torch.device(given.device), True
    with use_backend(given.backend):
        if device.type == "cuda" and not given.skip:
            emit(label | launch(device))
        listed = cases(device.type, given.ops, given.tick != "auto")
        rows = ((case, cache) for case in listed for cache in case.caches)
        for number, (case, cache) in enumerate(rows, 1):
            if number <= given.skip:
                continue
            started, row = time.monotonic(), label | {"op": case.op, "size": case.size, "cache": cache}
            seconds = LONGEST[device.type]

            def late(row: Row = row, number: int = number, seconds: float = seconds) -> None:
                emit(row | {"result": "failed", "why": f"no end after {seconds:g} s", "took": seconds})
                anew(number)

            with watched(seconds, late):
                row |= one(case, device, cache, given.limit)
            emit(row | {"took": round(time.monotonic() - started, 2)})
            good &= row["result"] == "timed"
            if row["result"] == "failed" and lost(device):
                anew(number)
    return good


@contextmanager
def watched(seconds: float, late: Callable[[], None]) -> Iterator[None]:
    """Calls ``late``, in a thread of its own, if what is inside takes longer."""
    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def lost(device: torch.device) -> bool:
    """Whether a fault has made the GPU useless for this process."""
    import torch

    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def anew(skip: int) -> None:
    """The same program in place of this one, after so many rows; that one failed is in the rows."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--skip", str(skip)])


def one(case: Case, device: torch.device, cache: str, seconds: float) -> Row:
    """Times of one case; what it raises is the row."""
    import torch

    from ..harness.case import WrongResultError
    from ..harness.environment import available_bytes, pool_members
    from ..harness.run import row

    # On a GPU the copy of as many bytes has two buffers of its own.
    need = case.memory + (case.cost.read + case.cost.triad if device.type == "cuda" else 0)
    if need > available_bytes(device):
        return {"result": "skipped", "why": f"needs {need / 1e9:.0f} GB of memory"}
    pool = pool_members(case.member_bytes) if cache == "cold" and device.type == "cpu" else 1
    try:
        return {"result": "timed"} | row(case, device, cache == "cold", pool, seconds, quick=True)
    except WrongResultError as wrong:
        return {"result": "wrong", "why": str(wrong)}
    except Exception as error:  # a launch that is refused, memory: the finding
        return {"result": "failed", "why": why(error)}
    finally:
        gc.collect()
        if device.type == "cuda":
            with suppress(RuntimeError):  # after a fault: the row says which
                torch.cuda.empty_cache()


def launch(device: torch.device) -> Row:
    """One kernel with next to nothing to do, timed as every op: what their times cannot fall below."""
    import torch

    from ..harness.clock import measure_on_gpu, quartiles

    nothing = torch.zeros(1, device=device)
    row: Row = {"op": "one small kernel", "result": "timed"}
    for cache in ("warm", "cold"):
        found = measure_on_gpu({"": [partial(nothing.add_, 1)]}, device, 0.1, cold=cache == "cold")[""]
        row[f"{cache}_us"] = quartiles([1e6 * sample for sample in found.samples])
    return row


def line(row: Row) -> str:
    named = [row[key] for key in ("op", "size", "dtype", "variant", "cache", "backend") if row.get(key)]
    text = f"times: {' '.join(named)}{'' if row['tick'] == 'auto' else ', ' + row['tick']}: "
    if "time_us" not in row:
        return text + (row["why"] if "why" in row else f"{row['warm_us']['median']:.4g} us warm")
    text += f"{row['time_us']['median']:.4g} us"
    return text + (f", {row['share_of_copy']['median']:.2f} of copy" if "share_of_copy" in row else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--to", required=True, type=Path, help="file that rows are appended to")
    parser.add_argument("--tick", default="auto", choices=("auto", "stages", "chip"), help="the plan of every tick_")
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=(*OPS, "correction"))
    parser.add_argument("--limit", default=0.3, type=float, help="about how many seconds one row's times are taken")
    parser.add_argument("--skip", default=0, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tick != "auto":
        os.environ["LLPF_CUDA_TICK"] = given.tick  # read once, at the first tick
    return 0 if run(given) else 1


if __name__ == "__main__":
    sys.exit(main())
