"""A process of compare.py: the package of one tree, timed by this checkout's cases; it talks in JSON lines.

{"prepare": case, "threads": n, "cache": c}  -> {} or {"error": ...}    makes the tensors, checks the result
{"sample": true}                             -> {"seconds": ...}        one timed sample of the case's call
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import llpf_fast.ops  # first of all, from the tree that was named: the benchmarks' tree has one too

    assert Path(str(llpf_fast.__file__)).is_relative_to(Path(sys.argv[1])), llpf_fast.__file__
    sys.path[0] = str(Path(__file__).parents[1])
    # Whatever prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


_now: dict[str, Any] = {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.harness.clock import measure

    if "prepare" in request:
        try:
            _now["calls"], _now["warm"] = prepare(**request), request["cache"] == "warm"
        except Exception as error:  # the other commit may lack what a case needs
            return {"error": f"{type(error).__name__}: {error}"}
        return {}
    seconds = 0.0
    for sign, calls in _now["calls"]:
        seconds += sign * measure({"": calls}, 0.0, rounds=3, warm=_now["warm"])[""].median
    return {"seconds": seconds}


def prepare(prepare: str, threads: int, cache: str) -> list[tuple[int, Sequence[Callable[[], object]]]]:
    import torch

    from benchmarks.cases import of
    from benchmarks.harness.case import check
    from benchmarks.harness.environment import pool_members

    _now.clear()
    torch.set_num_threads(threads)
    case = next(case for case in of(prepare.split()[0]) if case.name == prepare and threads in case.threads)
    prepared = case.prepare(torch.device("cpu"), pool_members(case.member_bytes) if cache == "cold" else 1)
    prepared.contenders = {name: prepared.contenders[name] for name in prepared.time_of}
    check(prepared, case.name)
    return [(sign, prepared.contenders[name].calls) for name, sign in prepared.time_of.items()]


if __name__ == "__main__":
    main()
