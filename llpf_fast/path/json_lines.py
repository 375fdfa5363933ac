"""Files of one JSON object a line, appended to while a run goes on and cut back when it is resumed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import LLPFError
from .atomic import read_bytes, sync_folder, write_whole, writing


class JsonLines:
    """One such file.

    Appending is one ``write`` and no fsync (about 0.05 ms): a kill -9 loses nothing that was appended, a power failure
    may lose what came after the last ``sync``. A last line without its newline was torn and does not count: reading
    skips it, the first append of a process removes it. NaN and infinity are written as Python's json writes and reads
    them, so that every float64 comes back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size: int | None = None

    def content(self) -> bytes:
        """The bytes of all whole lines."""
        if not self.path.exists():
            return b""
        data = read_bytes(self.path)
        return data[: data.rfind(b"\n") + 1]

    def lines(self) -> list[bytes]:
        """Whole lines, each with its newline."""
        return self.content().splitlines(keepends=True)

    def read(self) -> list[dict[str, Any]]:
        """All records; LLPFError naming file and line where one is not a JSON object."""
        return [self.parse(line, number) for number, line in enumerate(self.lines(), start=1)]

    def parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LLPFError(f"{self.path} is damaged: line {number} is not JSON") from error
        if not isinstance(record, dict):
            raise LLPFError(f"{self.path} is damaged: line {number} is not a JSON object")
        return record

    @staticmethod
    def encode(record: dict[str, Any]) -> bytes:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"

    def size(self) -> int:
        """Bytes of all whole lines."""
        if self._size is None:
            self._size = len(self.content())
        return self._size

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; LLPFError naming the folder when the disk refuses, and then no part of the line stays."""
        line = self.encode(record)
        size = self.size()
        with writing(self.path.parent):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.lseek(handle, size, os.SEEK_SET)
                try:
                    if os.fstat(handle).st_size != size:
                        os.ftruncate(handle, size)
                    write_whole(handle, line)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.ftruncate(handle, size)
                    raise
            finally:
                os.close(handle)
        self._size = size + len(line)

    def forget_size(self) -> None:
        """To be called after the file was replaced by other means."""
        self._size = None

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes, which must end a line."""
        with writing(self.path.parent):
            if size == 0 and not self.path.exists():
                return
            os.truncate(self.path, size)
        self._size = size

    def sync(self) -> None:
        """Make all appended lines survive a power failure (one fsync, two when the file is new)."""
        with writing(self.path.parent):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            sync_folder(self.path.parent)
