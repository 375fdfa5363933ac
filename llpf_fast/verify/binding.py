"""In what a certificate's data, loss and settings are not the search's, and how far its path goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..batches import Data, LossReduction, TensorData
from ..batches.batch import batch_length
from ..batches.data import BatchedData, repeats
from ..batches.fixed_samples import MaterializedData, materialized_digest, materialized_set_digest, sample_count
from ..errors import LLPFError
from ..modes import MODES
from ..path import RunDirectory
from ..path.fingerprint import digest, loss_identity
from .evaluator import Evaluator, Statistics
from .origin import RunOrigin

#: What a caller may allow to be another than the search's.
Kind = Literal["data", "loss", "settings"]


@dataclass(frozen=True)
class Difference:
    """In what this verification is not the search's, or cannot be compared with it.

    Attributes:
        kind: what ``text`` is about.
        known: whether something is different; false where run.yaml or the data do not allow to tell.
        matters: whether the verdict could be another one on what the search had.
    """

    kind: Kind
    text: str
    known: bool = True
    matters: bool = True

    @property
    def reason(self) -> str:
        """Why the path is not connected, and how to allow it."""
        remedy = f"pass other_{self.kind}=True (--other-{self.kind}) where that is meant"
        return f"unlike the search: {self.text}; {remedy}" if self.known else f"{self.text}; {remedy}"


def differences(
    origin: RunOrigin,
    evaluator: Evaluator,
    given: Data,
    samples: MaterializedData,
    statistics: Statistics,
    threshold: float,
) -> Iterator[Difference]:
    """In what this evaluation is not the search's, as far as run.yaml records the search."""
    settings, task = origin.settings, origin.task
    yield from _loss_differences(task.get("loss") or {}, evaluator)
    yield from _data_differences(task.get("data") or {}, given, samples, evaluator, origin.seed)
    searched = settings.get("statistics", "stored")
    if searched != statistics:
        yield Difference("settings", f"BatchNorm statistics are {statistics}, the search's were {searched}")
    if "settings_sha256" not in task:
        yield Difference(
            "settings",
            "run.yaml records no digest of its settings: whether they were edited after the search is not known",
            known=False,
        )
    elif task["settings_sha256"] != digest(settings):
        yield Difference("settings", "the settings in run.yaml were edited after the search")
    recorded = settings.get("threshold")
    if not isinstance(recorded, (int, float)):
        yield Difference("settings", "run.yaml records no threshold", known=False)
    elif threshold != recorded:
        text = f"the threshold is {threshold:g}, the search's was {recorded}"
        yield Difference("settings", text, matters=threshold > recorded)


def _loss_differences(recorded: dict[str, Any], evaluator: Evaluator) -> Iterator[Difference]:
    reduction = LossReduction(evaluator.loss_fn)
    loss = loss_identity(evaluator.loss_fn, reduction.name, named=reduction.exact)
    if "name" not in recorded:
        text = "run.yaml records no loss: whether this one is the search's is not known"
        yield Difference("loss", text, known=False)
    elif recorded["name"] != loss["name"]:
        yield Difference("loss", f"the loss is {loss['name']}, the search's was {recorded['name']}")
    elif ("sha256" in recorded) != ("sha256" in loss):
        now, before = ("other code", "torch's") if "sha256" in loss else ("torch's", "other code")
        yield Difference("loss", f"the loss {loss['name']} is {now}, the search's was {before} of that name")
    elif "sha256" in loss and None in (recorded["sha256"], loss["sha256"]):
        text = f"the loss {loss['name']} has no source file: whether it is the search's is not known"
        yield Difference("loss", text, known=False)
    elif recorded.get("sha256") != loss.get("sha256"):
        yield Difference("loss", f"the code of the loss {loss['name']} has changed since the search")


def _data_differences(
    recorded: dict[str, Any], given: Data, samples: MaterializedData, evaluator: Evaluator, seed: int
) -> Iterator[Difference]:
    """In what the training data differ from the search's, which may have read a part of them only.

    Where the samples change from one pass to the next (a shuffling loader with a generator, augmentation by NumPy),
    only their numbers can be compared.
    """
    count, read, dataset_length = sample_count(samples), recorded.get("digest_of"), recorded.get("dataset")
    if not isinstance(read, int) or not isinstance(recorded.get("sha256"), str):
        text = "run.yaml records no digest of the training data: whether these are the search's is not known"
        yield Difference("data", text, known=False)
        return
    whole = recorded.get("samples")
    if whole is None and recorded.get("form") == "samples":
        whole = read
    given_length = given.dataset_length if isinstance(given, BatchedData) else count
    for length, of_search in ((count, whole), (given_length, dataset_length)):
        if isinstance(of_search, int) and length is not None and length != of_search:
            yield Difference("data", f"the training data are {length} samples, the search's were {of_search}")
            return
    if count < read:
        yield Difference("data", f"the training data are {count} samples, the search read {read}")
        return
    part = _first_samples(samples, read)
    were_batches, are_batches = recorded.get("form") == "batches", isinstance(given, BatchedData)
    if part is not None:
        if recorded["sha256"] == materialized_digest(part, evaluator.dtype):
            return
        if recorded.get("set_sha256") == materialized_set_digest(part, evaluator.dtype):
            if were_batches == are_batches and repeats(given, (seed, seed)):
                text = "the training data are the search's in another order"
                yield Difference("data", text, matters=not evaluator.by_sample)
            return
        if read == count and not are_batches and repeats(given, (seed, seed)):
            yield Difference("data", "the training data are not the samples of the search")
            return
        shuffled = were_batches and not are_batches  # the search's batches may have been shuffled
        if not shuffled and repeats(given, (seed, seed if were_batches == are_batches else seed + 1)):
            text = "the training data are not the samples of the search, or are in another order"
            yield Difference("data", text)
            return
    text = "the training data cannot be compared with the search's, which read others of them, or in another order"
    yield Difference("data", text, known=False)


def _first_samples(samples: MaterializedData, count: int) -> MaterializedData | None:
    """The first ``count`` samples; None where no batch ends there."""
    if isinstance(samples, TensorData):
        return samples if count == samples.count else samples.subset(torch.arange(count))
    total = 0
    for number, batch in enumerate(samples, 1):
        total += batch_length(*batch)
        if total >= count:
            return samples[:number] if total == count else None
    return None


def unreached(run: RunDirectory) -> list[str]:
    """Why the polyline does not lead from the run's start to its destination (``check`` compared what is recorded).

    Where the search had no goal, the path is complete where it ended.
    """
    goals = _goals(run)
    endpoints = ("start", "destination") if "model" in goals else ("start",)
    reasons = [
        f"run.yaml records no {endpoint}_sha256: the {endpoint} cannot be checked"
        for endpoint in endpoints
        if not run.run.get(f"{endpoint}_sha256")
    ]
    if not run.complete:
        reasons.append("the destination is not reached: the run is not finished; continue it with llpf find --resume")
    elif not run.arrived and goals != {"none"}:
        reasons.append("the destination is not reached: the search stopped before it arrived")
    return reasons


def way(run: RunDirectory) -> str:
    """From where to where the path leads, in words."""
    goals = _goals(run)
    if run.arrived and "none" not in goals:
        return f"from the start to {'its spheres' if goals == {'sphere'} else 'the destination'}"
    if run.complete and goals == {"none"}:
        return "from the start to where the search ended"
    distances: list[float] = []
    with contextlib.suppress(LLPFError):  # a damaged record says nothing of the path
        distances = [record["distance"] for record in run.metrics() if isinstance(record.get("distance"), (int, float))]
    if len(distances) > 1 and 0 <= distances[-1] < distances[0]:
        share = 100 * (1 - distances[-1] / distances[0])
        return f"from the start to about {share:.0f} % of the way to the destination"
    return "from the start to where the search stopped, short of its destination"


def _goals(run: RunDirectory) -> set[str]:
    """The goal in run.yaml and that of the mode: ``goal`` is not among the settings, whose digest shows an edit."""
    goals = {run.run.get("goal") or "model"}
    if (mode := MODES.get((run.run.get("settings") or {}).get("mode", ""))) is not None:
        goals.add(mode.goal)
    return goals
