"""Results of computations on disk, by a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..batches import batch, data, fixed_samples, forward, precision, sampling, statistics
from ..batches import loss as batch_loss
from ..errors import LLPFError
from ..path.durable import read_bytes, write_bytes, write_whole, writing
from ..path.fingerprint import code_digest, digest
from ..path.plain_values import to_plain
from ..path.state import decode_state, encode_state, header, state_digest
from ..verify import Evaluation
from ..verify import evaluator as evaluate

#: state dict -> what it measures.
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]

#: Raised when what is stored, or how it is computed, changes its meaning.
_FORMAT = 2


def _versions() -> dict[str, Any]:
    return {"format": _FORMAT, "llpf_fast": __version__, "torch": torch.__version__}


def evaluating_code() -> str:
    """Digest of the code that decides what the loss of a set is, and what mini-batches are drawn."""
    return code_digest(evaluate, batch, batch_loss, data, fixed_samples, forward, precision, sampling, statistics)


class Values:
    """Plain values by key in ``file``, one JSON line each, NaN and infinity included.

    Every ``put`` appends its line at once. Several threads and processes may share a file: a line is one write at its
    end. Incomplete or changed lines (each has a checksum) are ignored. Not fsynced: a value lost to a power failure is
    computed again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._known: dict[str, Any] | None = None

    def get(self, key: str) -> Any | None:
        """The value of ``key``; None where it has none."""
        with self._lock:
            return self._read().get(key)

    def put(self, key: str, value: Any) -> None:
        """Store ``value`` (not None); LLPFError naming the folder where it cannot be written."""
        content = json.dumps([key, to_plain(value)], ensure_ascii=False)
        line = json.dumps({"check": _check(content), "content": content}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            known = self._read()
            with writing(self.file.parent):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    # The newline first: a killed process may have left an incomplete line.
                    write_whole(handle, b"\n" + line)
                finally:
                    os.close(handle)
            known[key] = value

    def _read(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            for line in read_bytes(self.file).split(b"\n") if self.file.exists() else []:
                pair = _parse(line)
                if pair is not None:
                    self._known[pair[0]] = pair[1]
        return self._known


def _check(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _parse(line: bytes) -> tuple[str, Any] | None:
    try:
        record = json.loads(line)
        if record["check"] != _check(record["content"]):
            return None
        key, value = json.loads(record["content"])
    except (ValueError, KeyError, TypeError):
        return None
    return key, value


class CachedEvaluator:
    """An evaluator (state dict -> Evaluation) that evaluates each state once.

    Evaluations are stored in ``folder`` under the sha256 of the state's names, dtypes, shapes and bytes and of all else
    that they depend on: ``about`` (digests of the data, the loss, the architecture; ``Problem`` makes it), the
    evaluator's batch size, device, dtype, memory order, loss and BatchNorm statistics, the source of the code that
    evaluates, and the versions of torch and llpf_fast. Any difference gives another key.

    Args:
        evaluator: a ``verify.Evaluator`` or any function of a state.
        folder: of the cache; made when first written. One file for each ``about``, about 300 bytes an evaluation.
        about: plain values.
    """

    def __init__(self, evaluator: Evaluate, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self._evaluator = evaluator
        settings = {
            key: str(getattr(evaluator, key, None))
            for key in ("batch_size", "device", "dtype", "statistics", "samples", "mode", "loss_name")
        }
        tf32 = torch.backends.cudnn.allow_tf32 if settings["device"].startswith("cuda") else None
        #: Digest of all that an evaluation depends on besides the state.
        self.depends_on = digest(
            {**_versions(), "about": about, "evaluator": settings, "tf32": tf32, "code": evaluating_code()}
        )
        self._stored = Values(Path(folder) / f"evaluations-{self.depends_on[:24]}.jsonl")
        #: How many states were evaluated, and how many evaluations came from the cache.
        self.measured = self.hits = 0

    @property
    def samples(self) -> int:
        """Samples of one evaluation."""
        return int(getattr(self._evaluator, "samples", 0))

    def __call__(self, state: Mapping[str, Tensor]) -> Evaluation:
        key = hashlib.sha256(f"{self.depends_on} {state_digest(state)}".encode()).hexdigest()
        known = self._stored.get(key)
        if known is not None:
            self.hits += 1
            return Evaluation(**known)
        answer = self._evaluator(state)
        self._stored.put(key, asdict(answer))
        self.measured += 1
        return answer


def cached_numbers(
    key: Mapping[str, Any], folder: str | os.PathLike[str], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """``compute()`` (plain values by name), or what it gave under the same ``key``.

    ``key`` names everything that the numbers depend on: what is computed, settings, digests of states
    (``path.state_digest``) and of the problem (``Problem.about``). Versions are added.
    """
    whole = {**_versions(), "key": to_plain(key)}
    name = digest(whole)
    stored = Values(Path(folder) / f"numbers-{name[:24]}.jsonl")
    known = stored.get(name)
    if isinstance(known, dict):
        return known
    answer: dict[str, Any] = to_plain(compute())
    stored.put(name, answer)
    return answer


def cached_training(
    key: Mapping[str, Any], folder: str | os.PathLike[str], train: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The state dict that ``train()`` gives, or gave under the same ``key``; CPU tensors, bit for bit.

    Stored as ``trained-<hash>.safetensors`` with its digest inside: where a file was damaged or exchanged, training is
    repeated. ``key`` names everything that the training depends on (data digest, seed, settings, initial state);
    versions are added. Written atomically, so an interrupted training leaves nothing.
    """
    name = digest({**_versions(), "key": to_plain(key)})
    file = Path(folder) / f"trained-{name[:32]}.safetensors"
    known = _stored(file, name)
    if known is not None:
        return known
    state = train()
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, encode_state(state, json.dumps({"key": name, "state_sha256": state_digest(state)})))
    stored = _stored(file, name)
    if stored is None:
        raise LLPFError(f"{file} cannot be read back after writing; is the disk sound?")
    return stored


def _stored(file: Path, name: str) -> dict[str, Tensor] | None:
    if not file.exists():
        return None
    try:
        data = read_bytes(file)
        state = decode_state(data, file)
        metadata = json.loads(header(data, file)["__metadata__"]["llpf_fast"])
        if metadata["key"] == name and metadata["state_sha256"] == state_digest(state):
            return state
    except (LLPFError, ValueError, KeyError, TypeError):
        pass
    return None
