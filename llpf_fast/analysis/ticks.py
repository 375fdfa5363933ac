"""The records of a search for each tick and layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import RunDirectory
from .trajectory import Matrix, architecture


@dataclass(frozen=True)
class Ticks:
    """The records of metrics.jsonl.

    Attributes:
        ticks: ``[T]`` tick of each record; a tick that was taken back and repeated has a record each time.
        taken_back: ``[T]`` whether the tick was taken back.
        layers: names of the segments, ``[S]``: parameter tensors, or pieces of them.
        distances: ``[T, S]`` L2 distance of a distance group to the destination (toward the origin: its norm).
        variances: ``[T, S]`` variance of a segment's variance group.
        loss: ``[T]`` loss with which the tick's training ended: a moving mean over mini-batches.
        rounds: ``[T]`` gradient steps of the tick.
        stage: ``[T]``.
        mode: the search's mode ("" where run.yaml does not say).
    """

    ticks: list[int]
    taken_back: list[bool]
    layers: list[str]
    distances: Matrix
    variances: Matrix
    loss: list[float]
    rounds: list[int]
    stage: list[int]
    mode: str

    def rows(self) -> list[list[Any]]:
        """One row a tick and segment: tick, taken_back, loss, rounds, stage, layer, distance, variance."""
        return [
            [
                *(tick, self.taken_back[t], self.loss[t], self.rounds[t], self.stage[t]),
                *(layer, float(self.distances[t, s]), float(self.variances[t, s])),
            ]
            for t, tick in enumerate(self.ticks)
            for s, layer in enumerate(self.layers)
        ]


COLUMNS = ("tick", "taken_back", "loss", "rounds", "stage", "layer", "distance", "variance")


def read_ticks(run: str | os.PathLike[str] | RunDirectory, module: nn.Module | None = None) -> Ticks:
    """The per-layer records of a run, finished or not.

    Args:
        module: the network; the registered one that run.yaml names when missing. It gives the segments their names.

    Raises:
        LLPFError: not a run; no tick yet; records of different layers.
    """
    directory = run if isinstance(run, RunDirectory) else RunDirectory.open(run)
    path = directory.folder / "metrics.jsonl"
    records = directory.metrics()
    if not records:
        raise LLPFError(f"{directory.folder} has no ticks yet: {path.name} is empty or missing")
    counts = {len(record.get(key) or ()) for record in records for key in ("distances", "variances")}
    if len(counts) != 1 or counts == {0}:
        raise LLPFError(f"{path} is damaged: its lines have {', '.join(map(str, sorted(counts)))} layers")
    count = counts.pop()
    settings = directory.run.get("settings") or {}
    return Ticks(
        ticks=[int(record["tick"]) for record in records],
        taken_back=[bool(record.get("rolled_back")) for record in records],
        layers=_names(module or architecture(directory), settings, count),
        distances=np.array([record["distances"] for record in records], dtype=np.float64),
        variances=np.array([record["variances"] for record in records], dtype=np.float64),
        loss=[_number(record.get("loss")) for record in records],
        rounds=[int(record.get("rounds") or 0) for record in records],
        stage=[int(record.get("stage") or 0) for record in records],
        mode=str(settings.get("mode") or ""),
    )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _names(module: nn.Module | None, settings: dict[str, Any], count: int) -> list[str]:
    """The segments' names in the search's order; numbers where they are not known."""
    if module is not None:
        layers = settings.get("layers") or {}
        flat = FlatParameters(
            module,
            join_bias=bool((settings.get("step") or {}).get("join_bias")),
            cut_attention=layers.get("attention", "all") != "all",
        )
        names = [row.name for row in flat.table.rows]
        if len(names) == count:
            return names
    return [f"segment {i}" for i in range(count)]
