"""``check_certificate``: whether an old certificate still holds for the files of a run, in seconds."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..batches.precision import checked_device
from ..errors import LLPFError
from ..path import RunDirectory
from ..path.durable import read_json
from ..path.plain_values import finite_or_none, to_plain
from ..path.polyline import Polyline, Position
from ..types import LossFunction, ProgressCallback
from .arc_length import ArcLength
from .binding import unreached
from .coverage import Piece
from .enclosure.loss_enclosure import LossEnclosure
from .origin import Samples
from .run import Task
from .sample_choice import all_units
from .verdict import is_violation, uncovered, verdict_words

#: Evaluations of samples that a check may cost: 10 s of enclosures of LeNet5 on one core, so on all 60,000 images two
#: pieces. Two pieces at least.
_EVALUATIONS = 120_000
#: Entries of ``evaluation`` in a certificate that a check compares, and what they are.
_EVALUATED = {
    "data_sha256": "the training data",
    "test_sha256": "the test data",
    "loss": "the loss",
    "loss_sha256": "the code of the loss",
    "model_sha256": "the network's code",
}
_RUN = {
    "run_sha256": "run.yaml",
    "start_sha256": "the start",
    "destination_sha256": "the destination",
    "waypoint_index_sha256": "the list of waypoints",
}


@dataclass(frozen=True)
class Confirmation:
    """A certificate that was confirmed: its verdict, and in one line what was compared and computed again."""

    verdict: str
    connected: bool
    text: str


def check_certificate(
    folder: str | os.PathLike[str],
    certificate: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    loss_fn: LossFunction | None = None,
    train: Samples | None = None,
    test: Samples | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    max_samples: int | None = None,
    progress: ProgressCallback | None = None,
) -> Confirmation:
    """Confirm a certificate of the run in ``folder`` from its files, and compute a small part of it again.

    Every file of the run, the data, the loss, the network's code and run.yaml must be those that it is about. The
    closed pieces must cover every segment that changes, with bounds at most at the threshold. Then a witness is
    evaluated again on all samples. Of a proof the pieces with the highest bounds, and some drawn at random, are bounded
    again on all samples; of a sampled verdict their ends are evaluated on all samples.

    Args:
        certificate: its file, or its content; the run's certificate.json when missing.
        model, loss_fn, train, test, data_dir, device, max_samples, progress: as of :func:`verify_run`.

    Raises:
        LLPFError: something is not what the certificate is about, or is not as it says; the first such thing is named.
    """
    run = RunDirectory.open(folder)
    content = _content(run, certificate)
    run.check()
    try:
        return _Check(run, content, model, loss_fn, train, test, data_dir, device, max_samples, progress).confirm()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, LLPFError):
            raise
        raise LLPFError(
            f"the certificate is damaged or not of this version ({type(error).__name__}: {error})"
        ) from error


def _content(run: RunDirectory, certificate: Any) -> Mapping[str, Any]:
    if isinstance(certificate, Mapping):
        return dict(finite_or_none(to_plain(certificate)))
    path = run.folder / "certificate.json" if certificate is None else Path(certificate)
    if not path.exists():
        raise LLPFError(f"{path} is missing; name the file of a certificate")
    return read_json(path)


class _Check:
    def __init__(
        self,
        run: RunDirectory,
        content: Mapping[str, Any],
        model: nn.Module | None,
        loss_fn: LossFunction | None,
        train: Samples | None,
        test: Samples | None,
        data_dir: str | os.PathLike[str] | None,
        device: torch.device | str,
        max_samples: int | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._run, self._content = run, content
        evaluation = content["evaluation"]
        # What the certificate is about is compared first where that needs no data.
        self._compare(self._files())
        self._task = Task.of(
            run,
            model=model,
            loss_fn=loss_fn,
            train=train,
            test=test,
            data_dir=data_dir,
            device=checked_device(device),
            statistics=evaluation["batchnorm_statistics"],
            batch_size=evaluation["batch_size"],
            max_samples=max_samples,
            progress=progress,
        )
        self._line = Polyline(run.waypoints())
        self._threshold = float(content["threshold"])
        self._pieces = [Piece(*piece) for piece in content["pieces"]]

    def confirm(self) -> Confirmation:
        self._compare(self._evaluated())
        content, count = self._content, len(self._line)
        verdict, connected = str(content["verdict"]), bool(content["connected"])
        if connected:
            self._check_connected(verdict)
        if verdict == "refuted":
            again = self._witness()
        elif verdict in ("proved", "sampled"):
            again = self._closed(verdict)
        else:
            again = "its open pieces were not bounded again"
        text = (
            f"confirmed: {verdict_words(verdict, connected)} at threshold {self._threshold:g}; {count:,} waypoints, "
            f"data, loss and run.yaml are those of the certificate, and {again}"
        )
        return Confirmation(verdict, connected, text)

    def _compare(self, parts: Iterator[tuple[str, Any, Any]]) -> None:
        """Raise LLPFError where one of (name, in the certificate, now) differs."""
        for name, recorded, now in parts:
            if recorded != now:
                raise LLPFError(
                    f"{name} of {self._run.folder} is not what the certificate is about; verify the run anew"
                )

    def _files(self) -> Iterator[tuple[str, Any, Any]]:
        waypoints = [waypoint.sha256 for waypoint in self._run.waypoints()]
        yield "the list of waypoint files", list(self._content["waypoint_sha256"]), waypoints
        now = Task.binding(self._run)
        for key, name in _RUN.items():
            yield name, self._content["run"][key], now[key]

    def _evaluated(self) -> Iterator[tuple[str, Any, Any]]:
        recorded, now = self._content["evaluation"], self._task.evaluation()
        for key, name in _EVALUATED.items():
            # What has no source has no digest; a test set is not needed to confirm a verdict.
            if key != "test_sha256" or now[key] is not None:
                yield name, recorded[key], now[key]
        yield "the number of training samples", recorded["train"]["samples"], self._task.train.samples

    def _check_connected(self, verdict: str) -> None:
        """Raise LLPFError where the certificate says connected and its own entries say not."""
        open_pieces = any(piece.cause is not None for piece in self._pieces)
        if (
            verdict not in ("proved", "sampled")
            or self._content["reasons"]
            or self._content["undecided"]
            or open_pieces
        ):
            raise LLPFError("the certificate contradicts itself: it says connected, its verdict or its reasons say not")
        if reasons := unreached(self._run):
            raise LLPFError(f"the certificate says connected, but {reasons[0]}")

    def _closed(self, verdict: str) -> str:
        """Check that the pieces cover the path, and compute some again; says what was computed."""
        changes = ArcLength(self._line, None, self._task.train.counters).changes
        for i, change in enumerate(changes):
            if change.jumps or change.broken:
                raise LLPFError(
                    f"no straight line leads from waypoint {i} to the next, but the certificate has {verdict}"
                )
        for i in uncovered(self._pieces, [i for i, change in enumerate(changes) if change.any]):
            raise LLPFError(f"the certificate's pieces do not cover the segment after waypoint {i}")
        for piece in self._pieces:
            if not piece.bound <= self._threshold:
                raise LLPFError(
                    f"the certificate's bound of a piece after waypoint {piece.waypoint} is above its threshold"
                )
        chosen = self._chosen()
        if not chosen:
            self._evaluate([Position(0, 0.0)])
            return "its loss was evaluated again on all samples"
        if verdict == "proved":
            return self._bound(chosen)
        ends = [_at(piece, fraction) for piece in chosen for fraction in (piece.start, piece.end)]
        highest = self._evaluate(list(dict.fromkeys(ends)))
        return (
            f"the ends of {len(chosen)} of its {len(self._pieces):,} pieces have at most {highest:.4g} on all samples"
        )

    def _chosen(self) -> list[Piece]:
        """The pieces with the highest bounds, and as many at random."""
        count = max(1, _EVALUATIONS // self._task.train.samples // 2)
        ranked = sorted(self._pieces, key=lambda piece: -piece.bound)
        others = ranked[count:]
        return ranked[:count] + random.Random(secrets.randbits(64)).sample(others, min(count, len(others)))

    def _bound(self, pieces: Sequence[Piece]) -> str:
        enclosure = LossEnclosure(self._line, self._task.train)
        everything = all_units(enclosure.denominators)
        highest = -float("inf")
        for piece in pieces:
            # What float32 leaves open by its rounding, float64 closes.
            for precise in (False, True):
                bounds = enclosure.bounds(piece.waypoint, piece.start, piece.end, everything.units, precise=precise)
                bound = max(everything.upper(bounds.start), everything.upper(bounds.end))
                if bound <= self._threshold:
                    break
            else:
                at = f"waypoint {piece.waypoint} + {piece.start:g}"
                raise LLPFError(f"a piece from {at} on has the bound {bound:.4g}, above the threshold: no proof")
            highest = max(highest, bound)
        return f"{len(pieces)} of its {len(self._pieces):,} pieces were bounded again, by at most {highest:.4g}"

    def _evaluate(self, positions: Sequence[Position]) -> float:
        """The highest loss at ``positions`` on all samples; LLPFError where one is above the threshold."""
        highest = -float("inf")
        for position in positions:
            evaluation = self._task.train(self._line.state(position))
            if is_violation(evaluation, self._threshold):
                at = f"waypoint {position.waypoint} + {position.fraction:g}"
                raise LLPFError(f"the loss at {at} is {evaluation.loss:.4g} on all samples, above the threshold")
            highest = max(highest, evaluation.loss)
        return highest

    def _witness(self) -> str:
        witness = self._content["witness"]
        position = Position(int(witness["waypoint"]), float(witness["fraction"]))
        evaluation = self._task.train(self._line.state(position))
        if not is_violation(evaluation, self._threshold):
            raise LLPFError(
                f"the witness does not refute the path: its loss is {evaluation.loss:.4g}, at most {self._threshold:g}"
            )
        return f"its witness has the loss {evaluation.loss:.4g} again"


def _at(piece: Piece, fraction: float) -> Position:
    return Position(piece.waypoint, fraction) if fraction < 1 else Position(piece.waypoint + 1, 0.0)
