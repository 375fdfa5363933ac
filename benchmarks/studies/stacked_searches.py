"""Searches of many small networks, one after another and stacked; evaluation and files included.

    python -m benchmarks.studies.stacked_searches [--paths 16] [--rounds 3] [--out FILE]

Trains one more perceptron on the digits than there are paths (cached under runs/studies), then searches each to the
next with `mlp-digits-m2m-quick`: one after another and as one stack, alternately, ROUNDS times each. The first round of
each also pays for imports; medians leave that out.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.environment import load, record
from benchmarks.studies.study import CPU, WORK, option_parser, parse, save_json, train
from llpf_fast.data import load_dataset
from llpf_fast.errors import LLPFError
from llpf_fast.find import PathFinder, SearchJob, StackedFinder
from llpf_fast.models import build_model
from llpf_fast.path import load_model_file
from llpf_fast.recipes import load_recipe

RECIPE = "mlp-digits-m2m-quick"

EndpointPair = tuple[dict[str, Tensor], dict[str, Tensor]]
SearchAll = Callable[[list[EndpointPair], Path], tuple[list[str], int]]


def in_turn(pairs: list[EndpointPair], out: Path) -> tuple[list[str], int]:
    """Search one pair after another; returns how each search ended, and the gradient steps of all."""
    settings = load_recipe(RECIPE)
    images = load_dataset(settings.data)
    results = [
        PathFinder(
            build_model(settings.model), *pair, settings=settings, train=images.train, out=out / f"{number:02d}"
        ).run()
        for number, pair in enumerate(pairs)
    ]
    return [result.ended for result in results], sum(result.sgd_steps for result in results)


def as_one_stack(pairs: list[EndpointPair], out: Path) -> tuple[list[str], int]:
    """Search all pairs with :class:`StackedFinder`; returns as :func:`in_turn`."""
    settings = load_recipe(RECIPE)
    images = load_dataset(settings.data)
    finder = StackedFinder(build_model(settings.model), settings=settings, train=images.train, parallel=len(pairs))
    jobs = [SearchJob(endpoints=lambda pair=pair: pair, out=out / f"{number:02d}") for number, pair in enumerate(pairs)]
    ended, steps = [], 0
    for job, result in finder.run(jobs):
        if isinstance(result, LLPFError):
            raise SystemExit(f"{job.out}: {result}")
        ended.append(result.ended)
        steps += result.sgd_steps
    return ended, steps


def timed(
    search: Callable[[list[EndpointPair], Path], tuple[list[str], int]], pairs: list[EndpointPair]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        ended, steps = search(pairs, Path(folder))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "arrived": ended.count("arrived"), "sgd_steps": steps}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=CPU / "together.json")
    args = parse(parser)
    make = partial(train, args.work, "mlp", "digits", data_dir=None, epochs=40, lr=0.05)
    states = [load_model_file(make(seed=seed)).state for seed in range(1, args.paths + 2)]
    pairs = list(pairwise(states))
    environment = record(torch.device("cpu"))
    searches = {"in turn": in_turn, "as one stack": as_one_stack}
    timings: dict[str, list[dict[str, Any]]] = {name: [] for name in searches}
    for _ in range(args.rounds):
        for name, search in searches.items():
            timings[name].append(timed(search, pairs))
            print(name, json.dumps(timings[name][-1]), flush=True)
    gain = {
        clock: statistics.median(
            turn[clock] / stack[clock] for turn, stack in zip(timings["in turn"], timings["as one stack"], strict=True)
        )
        for clock in ("seconds", "cpu_seconds")
    }
    result = {
        "recipe": RECIPE,
        "paths": args.paths,
        "runs": timings,
        "median_gain": gain,
        "environment": environment | {"load_after": load()},
    }
    print(json.dumps(gain))
    save_json(args.out, result)


if __name__ == "__main__":
    main()
