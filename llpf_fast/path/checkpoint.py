"""``Checkpoint``: the file that a search resumes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LLPFError
from .durable import read_bytes, reading, write_bytes, writing
from .plain_values import to_plain
from .state import decode_state, encode_state, header


@dataclass(frozen=True)
class Cursor:
    """The lengths of the run's files at checkpoint number ``serial``, to which resuming cuts them."""

    serial: int
    waypoints: int
    index_bytes: int
    index_sha256: str
    metrics_bytes: int


class Checkpoint:
    """``checkpoint.safetensors`` in ``folder``: tensors, plain values and cursor, replaced together by one rename."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "checkpoint.safetensors"

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], cursor: Cursor) -> None:
        """Replace the checkpoint, durably. Integers and float64 values of ``state`` keep every bit; NaN is allowed."""
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        text = json.dumps({"mark": asdict(cursor), "state": to_plain(state)})
        write_bytes(self.path, encode_state(tensors, text))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any], Cursor]:
        """Tensors on the CPU, plain values, cursor; LLPFError naming the file when it is missing or damaged."""
        data = read_bytes(self.path)
        cursor, state = self._metadata(data)
        return decode_state(data, self.path), state, cursor

    def cursor(self) -> Cursor:
        """The cursor alone, from the file's header; errors as :meth:`load`."""
        with reading(self.path), open(self.path, "rb") as file:
            length = file.read(8)
            data = length + file.read(int.from_bytes(length, "little"))
        return self._metadata(data)[0]

    def _metadata(self, data: bytes) -> tuple[Cursor, dict[str, Any]]:
        entries = header(data, self.path)
        try:
            content = json.loads(entries["__metadata__"]["llpf_fast"])
            return Cursor(**content["mark"]), content["state"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise LLPFError(f"{self.path} is damaged: not a checkpoint of llpf_fast") from error
