"""A list of the files that a command wrote into a folder, so that it replaces or deletes no others."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LLPFError

#: The list in the folder: name and sha256 of every file that was written there.
_LIST = ".llpf-written.json"
#: Instead of a folder's sha256.
_FOLDER = "folder"
_UNREADABLE = "not readable"


@contextlib.contextmanager
def list_written(folder: Path, patterns: Sequence[str], command: str) -> Iterator[None]:
    """Context manager: list the files that the block writes into ``folder``.

    Args:
        patterns: globs, relative to ``folder``, of all files that the block may write.
        command: for the message.

    Raises:
        LLPFError: before the block, where a file matches that is not listed, or that was changed since.
    """
    listed = _read_list(folder)
    for name, digest in _digests(folder, patterns).items():
        if listed.get(name) != digest or digest == _UNREADABLE:
            raise LLPFError(
                f"{folder / name} was not written by {command}, or was changed since; move it away, or choose another "
                "folder with --out"
            )
    try:
        yield
    finally:
        # Where the list cannot be written, the next command refuses to replace the files.
        with contextlib.suppress(LLPFError, OSError):
            now = {**listed, **_digests(folder, patterns)}
            if now != listed:
                _write_list(folder, now)


def remove_listed(folder: Path, command: str) -> None:
    """Delete all that an earlier :func:`list_written` listed in ``folder``.

    Raises:
        LLPFError: the folder holds something else, or a changed file. Nothing is deleted then.
    """
    listed = _read_list(folder)
    present = _digests(folder, ["**/*"])
    for name, digest in present.items():
        if listed.get(name) != digest or digest == _UNREADABLE:
            raise LLPFError(
                f"{folder} holds {name}, which {command} did not write, or which was changed since; choose another "
                "folder with --out, or delete it first"
            )
    # In reverse order: a folder comes before its files.
    for name, digest in reversed(present.items()):
        if digest == _FOLDER:
            (folder / name).rmdir()
        else:
            (folder / name).unlink()
    (folder / _LIST).unlink(missing_ok=True)


def _read_list(folder: Path) -> dict[str, str]:
    try:
        listed = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return listed if isinstance(listed, dict) else {}


def _write_list(folder: Path, listed: dict[str, str]) -> None:
    from ..path.durable import write_json

    write_json(folder / _LIST, dict(sorted(listed.items())), durable=False)


def _digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """sha256 of the files that match, and ``_FOLDER`` of folders, by name, sorted."""
    if not folder.is_dir():
        return {}
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(files)
        if path.relative_to(folder).as_posix() != _LIST
    }


def _digest(path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        return _FOLDER
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return _UNREADABLE
    return digest.hexdigest()
