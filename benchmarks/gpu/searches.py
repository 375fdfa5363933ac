"""First call: a LeNet5 path on MNIST between carried endpoints, by replays and by one launch a correction, certified.

    python3 -m benchmarks.gpu.searches --device cuda --carry build/carry --to OUT/searches.jsonl

One row an iteration's time, a search, a certificate. Where the kernels of the passes repeat, both searches make equal
decisions from the same bits: ``sgd_steps`` and ``index`` (a digest of all waypoints) say whether they did. On a CPU
there are no CUDA graphs; fewer ticks are gone there, which shows that every line works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import carried
from .rows import Emit, Row, why, writer

if TYPE_CHECKING:
    from torch import Tensor

    from llpf_fast.data import ImageData

RECIPE = "lenet5-mnist-m2m-quick"
CAPTURES = ("auto", "while")
#: Iterations of one timed correction, and seconds that it is repeated for.
ROUNDS, SECONDS = {"cuda": 200, "cpu": 10}, {"cuda": 1.5, "cpu": 0.5}
#: Ticks at most, and images that points are certified on (0: all).
TICKS, CERTIFIED = {"cuda": 200, "cpu": 3}, {"cuda": 0, "cpu": 300}


def line(row: Row) -> str:
    said = {key: value for key, value in row.items() if key not in ("stage", "what")}
    return f"{row['what']}: {said}"


def run(device: str, carry: Path, work: Path, emit: Emit, captures: Sequence[str] = CAPTURES) -> None:
    """A failure is a row, and the rest goes on."""
    import torch

    from llpf_fast.data import ImageData, load_dataset
    from llpf_fast.path import load_model_file

    def tried(what: str, capture: str, call: Callable[[], Row]) -> None:
        row: Row = {"what": what, "device": device, "capture": capture}
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                row |= call()
            except Exception as error:  # whatever it is, it is the finding
                row |= {"result": "failed", "why": why(error)}
        if told:
            row["warnings"] = sorted({str(warning.message) for warning in told})
        emit(row | {"seconds": round(time.monotonic() - began, 3)})

    began = time.monotonic()
    data = load_dataset("mnist", carried.mnist(carry, work / "data"))
    assert isinstance(data, ImageData)
    ends = [load_model_file(file).state for file in sorted((carry / "endpoints").iterdir())[:2]]
    emit({"what": "data", "device": device, "seconds": round(time.monotonic() - began, 3)})
    torch.ones(1, device=device)  # a GPU's context is nobody's search
    for capture in captures:  # all of replays first: a WHILE graph that never ends takes what comes after it
        tried("iteration", capture, partial(iterations, device, data.train, ends[0], capture))
        tried("search", capture, partial(search, device, data.train, ends, capture, work / capture))
        tried("certificate", capture, partial(certificate, device, data, work / capture))


def iterations(device: str, train: tuple[Tensor, Tensor], start: dict[str, Tensor], capture: str) -> Row:
    """Milliseconds of one iteration of the recipe, in corrections that never meet their threshold."""
    import torch

    from llpf_fast.batches import TensorBatches
    from llpf_fast.correct import Correction
    from llpf_fast.flat import FlatParameters
    from llpf_fast.models import build_model
    from llpf_fast.recipes import load_recipe

    recipe, rounds = load_recipe(RECIPE).correction, ROUNDS[device]
    model = build_model("lenet5").to(device)
    model.load_state_dict(start)
    inputs, targets = (part.to(device) for part in train)
    correction = Correction(
        FlatParameters(model),
        torch.nn.functional.cross_entropy,
        TensorBatches(inputs, targets, recipe.batch_size, seed=0, channels_last=device == "cpu"),
        threshold=0.0,
        window=rounds,
        max_steps=rounds,
        # So that any number of iterations leaves a network that does not diverge.
        lr=1e-4,
        momentum=recipe.momentum,
        cuda_graph=capture,  # type: ignore[arg-type]
    )
    correction.run(0)
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < 3 or time.perf_counter() - began < SECONDS[device]:
        before = time.perf_counter()
        correction.run(rounds * (len(took) + 1))  # ends with a look: the device is done
        took.append((time.perf_counter() - before) / rounds * 1e3)
    took.sort()
    return {
        "captured": correction.captured,
        "rounds": rounds,
        "milliseconds": round(took[len(took) // 2], 5),
        "fastest": round(took[0], 5),
        "corrections": len(took),
    }


def search(device: str, train: tuple[Tensor, Tensor], ends: list[dict[str, Tensor]], capture: str, folder: Path) -> Row:
    """Find, from the call to the result, and the part of it that corrections take."""
    from llpf_fast.find import PathFinder
    from llpf_fast.models import build_model
    from llpf_fast.path import RunDirectory
    from llpf_fast.recipes import load_recipe

    settings = load_recipe(RECIPE, [f"correction.cuda_graph={capture}", f"max_ticks={TICKS[device]}"])
    began = time.perf_counter()
    finder = PathFinder(build_model("lenet5"), *ends, settings=settings, train=train, device=device, out=folder)
    prepared = time.perf_counter()
    spent: list[float] = []
    run = finder._correction.run

    def timed(*given: Any, **named: Any) -> Any:
        before = time.perf_counter()
        found = run(*given, **named)  # it ends with a look: the device is done
        spent.append(time.perf_counter() - before)
        return found

    finder._correction.run = timed  # type: ignore[method-assign]
    found = finder.run()
    done = time.perf_counter()
    return {
        "captured": finder._correction.captured,
        "ended": found.ended,
        "ticks": found.ticks,
        "sgd_steps": found.sgd_steps,
        "waypoints": found.waypoints,
        "index": RunDirectory.open(folder).index_digest(),
        "prepare_seconds": round(prepared - began, 4),
        "find_seconds": round(done - prepared, 4),
        # The first captures.
        "first_correction_seconds": round(spent[0], 4),
        "corrections": len(spent),
        "correction_seconds": round(sum(spent), 4),
        "milliseconds_a_step": round(sum(spent[1:]) / max(found.sgd_steps, 1) * 1e3, 5),
    }


def certificate(device: str, data: ImageData, folder: Path) -> Row:
    from llpf_fast.models import build_model
    from llpf_fast.verify import verify_run

    few = CERTIFIED[device] or len(data.train[1])
    train, test = (tuple(part[:few] for part in side) for side in (data.train, data.test))
    found = verify_run(folder, model=build_model("lenet5"), train=train, test=test, device=device)
    names = ("verdict", "reasons", "undecided", "differs", "threshold", "max_loss", "start_loss", "destination_loss")
    said = {name: getattr(found, name) for name in names}
    said |= {"points": found.points_evaluated, "images": few, "min_test_accuracy": found.min_test_accuracy}
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--carry", required=True, type=Path, help="folder that pack.sh made")
    parser.add_argument("--to", required=True, type=Path, help="file that rows are appended to")
    parser.add_argument("--captures", nargs="+", default=CAPTURES, choices=CAPTURES)
    given = parser.parse_args()
    failed: list[Row] = []
    write = writer(given.to, "searches", line)

    def emit(row: Row) -> None:
        write(row)
        failed.extend([row] if row.get("result") == "failed" else [])

    with tempfile.TemporaryDirectory() as work:
        try:
            run(given.device, given.carry, Path(work), emit, given.captures)
        except Exception as error:  # data or endpoints that cannot be read
            emit({"what": "searches", "result": "failed", "why": why(error), "seconds": 0.0})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
