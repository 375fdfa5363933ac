"""Networks that the analyses' results rest on, trained by ``llpf train``'s function, once for each set of options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.record_path import ROOT
from llpf_fast.cli.train import checkpoint_file, train_endpoint

RESULTS = ROOT / "benchmarks" / "results" / "analysis"
#: Where trained networks and measurements are kept between calls; nothing in it is committed.
WORK = ROOT / "runs" / "analysis"


def train(
    work: Path, model: str, data: str, *, data_dir: str | None, seed: int, init: Path | None = None, **options: Any
) -> Path:
    """The file of a network trained with these options; trained only where no earlier call has.

    ``checkpoint_epochs`` among the options leaves further files: ``checkpoint_file(file, epoch)``.
    """
    key = {
        **{"model": model, "data": data, "seed": seed, "torch": torch.__version__},
        **{"init": None if init is None else hashlib.sha256(init.read_bytes()).hexdigest()},
        **options,
    }
    folder = work / "networks" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = folder / f"{model.rpartition(':')[2]}.model.pt"
    if not file.exists():  # written last, after all checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        print(f"training {model} on {data}, seed {seed}, {options}", flush=True)
        train_endpoint(
            *(model, data, file),
            seed=seed,
            data_dir=data_dir,
            init=None if init is None else str(init),
            quiet=True,
            threads=1,
            **options,
        )
    return file


def trunk(
    work: Path, model: str, data: str, epochs: Sequence[int], *, data_dir: str | None, seed: int, **options: Any
) -> dict[int, Path]:
    """Checkpoints of one training after each of ``epochs``."""
    last = max(*epochs, 1)
    file = train(work, model, data, data_dir=data_dir, seed=seed, epochs=last, checkpoint_epochs=[*epochs], **options)
    return {epoch: checkpoint_file(file, epoch) for epoch in epochs}
