"""``Waypoint``: one recorded point of a path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LLPFError
from .atomic import read_bytes
from .state import decode_state

OWN_KEYS = ("index", "file", "tick", "sha256")


def waypoint_name(index: int) -> str:
    return f"{index:06d}.safetensors"


def is_waypoint_file(path: Path) -> bool:
    """Whether a file's name is one that a run gives a waypoint, or a waypoint that is being written."""
    return re.fullmatch(r"\d{6,}\.safetensors|\.\d{6,}\.safetensors\.\d+\.tmp", path.name) is not None


@dataclass(frozen=True)
class Waypoint:
    """A waypoint as its run's index records it: the file ``path``, its sha256, the tick after which it was taken.

    ``info`` is whatever else was recorded with it (a loss, rounds).
    """

    index: int
    tick: int
    path: Path
    sha256: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The file's bytes; LLPFError by name when the file is missing or is not the one that was recorded."""
        data = read_bytes(self.path)
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise LLPFError(
                f"waypoint {self.path.name} was changed after it was recorded "
                f"(sha256 {found[:12]}... != {self.sha256[:12]}...) in {self.path.parent}"
            )
        return data

    def load(self) -> dict[str, Tensor]:
        """Its state dict on the CPU (``model.load_state_dict`` takes it), buffers included; errors as ``read``."""
        return decode_state(self.read(), self.path)

    def record(self) -> dict[str, Any]:
        """Its line in ``waypoints.jsonl``."""
        return {"index": self.index, "file": self.path.name, "tick": self.tick, "sha256": self.sha256, **self.info}

    @staticmethod
    def from_record(record: dict[str, Any], index: int, folder: Path, source: Path) -> Waypoint:
        """A line of ``source``; LLPFError when it is not waypoint number ``index``.

        The file name is computed, not read: a changed index cannot point outside the run.
        """
        for key, kind in (("index", int), ("file", str), ("tick", int), ("sha256", str)):
            if type(record.get(key)) is not kind:
                raise LLPFError(f"{source} is damaged: line {index + 1} has no {key}")
        if record["index"] != index or record["file"] != waypoint_name(index):
            raise LLPFError(
                f"{source}: line {index + 1} is waypoint {record['index']} ({record['file']}), expected {index} "
                f"({waypoint_name(index)}); waypoints were deleted or re-ordered"
            )
        info = {key: value for key, value in record.items() if key not in OWN_KEYS}
        return Waypoint(index, record["tick"], folder / waypoint_name(index), record["sha256"], info)
