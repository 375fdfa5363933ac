"""One writer a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import LLPFError
from .atomic import writing

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks: there, nobody keeps two processes apart
    fcntl = None  # type: ignore[assignment]

#: Handles by process and folder: a fork inherits the handle, but not the lock.
_held: dict[tuple[int, Path], int] = {}


def hold(folder: Path) -> None:
    """Make this process the one that writes the run in ``folder``; LLPFError when another process is.

    A POSIX record lock: the kernel drops it when the process ends, also by kill -9, so nothing is ever left locked.
    File systems without locks are taken as they are. One process may open its own run any number of times.
    """
    if fcntl is None:
        return
    folder = folder.resolve()
    path = folder / ".lock"
    with writing(folder):
        held = _held.get((os.getpid(), folder))
        if held is not None:
            if path.exists() and os.path.samestat(os.fstat(held), os.stat(path)):
                return
            release(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(handle)
            raise LLPFError(f"{folder} is being written by another process; wait for it or stop it") from error
    _held[os.getpid(), folder] = handle


def release(folder: Path) -> None:
    """Let other processes write the run; nothing happens when this process does not hold it."""
    handle = _held.pop((os.getpid(), folder.resolve()), None)
    if handle is not None:
        os.close(handle)
