"""Durable files: written whole or not at all, JSON lines, and a lock that leaves a folder to one process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import LLPFError, shown

#: What the user can do about an error of the disk; messages of other errors only quote the system.
_REMEDY = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write",
    errno.EPERM: "choose a folder that you may write",
    errno.ENOTDIR: "there is a file where a folder is needed",
    errno.EISDIR: "there is a folder where a file is needed",
}


@contextlib.contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Turn an OSError inside the block into an LLPFError that names ``folder`` and what to do."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = _REMEDY.get(error.errno or 0)
        raise LLPFError(f"cannot write in {folder}: {reason}" + (f"; {remedy}" if remedy else "")) from error
    except ValueError as error:
        if isinstance(error, LLPFError) or "null" not in str(error):
            raise
        raise LLPFError("a file's name cannot hold a null character; choose another") from error


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn an OSError inside the block, or an impossible file name, into an LLPFError that names ``path``."""
    try:
        yield
    except FileNotFoundError as error:
        raise LLPFError(f"{path} is missing") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise LLPFError(f"cannot read {shown(str(path))}: file name too long") from error
        raise LLPFError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        if isinstance(error, LLPFError) or "\0" not in str(path):
            raise
        raise LLPFError(f"{shown(str(path))} is not a file name: it holds a null character") from error


def temporary_name(path: Path) -> Path:
    """Where the next content of ``path`` is written: a hidden file of this process in the same folder.

    In the same folder a rename is atomic. What a killed process leaves behind is recognized by ``is_temporary``.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether the name is one that ``temporary_name`` gives."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside ``folder`` survive a power failure (0.1 to 10 ms)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of an already written file survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(handle: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written: one call may take only a part when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data``, atomically: also after a kill -9, the file is the old or the new one, whole.

    ``durable`` also makes it survive a power failure (two fsyncs, 1 ms on a fast disk, 20 ms on a slow one). Raises
    LLPFError naming the folder when the disk refuses; then the old file is unchanged and nothing new is left.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing(path.parent):
        try:
            # Mode 0o666 less the umask, as for any file; with tempfile's 0o600 no other user could read it.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write_whole(handle, data)
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink()
            raise
        if durable:
            sync_folder(path.parent)


def write_json(path: Path | str, value: Any, *, durable: bool = True) -> None:
    """``write_bytes`` of a plain value as indented, strict JSON (ValueError for NaN or infinity)."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(), durable=durable)


def read_bytes(path: Path | str) -> bytes:
    """The whole file; LLPFError naming it when it is missing or unreadable."""
    with reading(path):
        return Path(path).read_bytes()


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object; LLPFError naming the file when it is missing or not one."""
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LLPFError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise LLPFError(f"{path} is damaged: a JSON object was expected, it holds a {type(value).__name__}")
    return value


class JsonLines:
    """A file with one JSON object a line.

    Appending is one ``write`` and no fsync (about 0.05 ms): a kill -9 loses nothing that was appended, a power failure
    may lose what was appended after the last ``sync``. A last line without its newline is the rest of an interrupted
    append: reading skips it, and the first append of a process removes it. NaN and infinity are written as Python's
    json does, so every float64 keeps its bits.
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
        return [self._parse(line, number) for number, line in enumerate(self.lines(), start=1)]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LLPFError(f"{self.path} is damaged: line {number} is not JSON") from error
        if not isinstance(record, dict):
            raise LLPFError(f"{self.path} is damaged: line {number} is not a JSON object")
        return record

    def size(self) -> int:
        """Bytes of all whole lines."""
        if self._size is None:
            self._size = len(self.content())
        return self._size

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; LLPFError naming the folder when the disk refuses, and then no part of the line remains."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
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

    def replace(self, content: bytes) -> None:
        """Replace the file, atomically, by ``content``: whole lines."""
        write_bytes(self.path, content)
        self._size = len(content)

    def truncate(self, size: int) -> None:
        """Drop all but the first ``size`` bytes, which must be whole lines."""
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


try:
    import fcntl
except ImportError:  # Windows has no POSIX locks: there, two processes can write one run
    fcntl = None  # type: ignore[assignment]

#: Handles of locked files, by process and folder: a fork inherits the handle, but not the lock.
_locks: dict[tuple[int, Path], int] = {}


def lock(folder: Path) -> None:
    """Make this process the only one that writes the run in ``folder``; LLPFError when another process writes it.

    A POSIX record lock: the kernel drops it when the process ends, also by kill -9. On file systems without locks
    nothing is locked. A process may lock a folder any number of times.
    """
    if fcntl is None:
        return
    folder = folder.resolve()
    path = folder / ".lock"
    with writing(folder):
        locked = _locks.get((os.getpid(), folder))
        if locked is not None:
            if path.exists() and os.path.samestat(os.fstat(locked), os.stat(path)):
                return
            unlock(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(handle)
            raise LLPFError(f"{folder} is being written by another process; wait for it or stop it") from error
    _locks[os.getpid(), folder] = handle


def unlock(folder: Path) -> None:
    """Let other processes write the run; nothing happens when this process has not locked it."""
    handle = _locks.pop((os.getpid(), folder.resolve()), None)
    if handle is not None:
        os.close(handle)
