"""Which files in a folder of results are ours: only those are ever replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LLPFError

#: In the folder: name of every file that was written there, and its sha256.
_LIST = ".llpf-written.json"
#: In the place of a folder's sha256.
_FOLDER = "folder"
_UNREADABLE = "not readable"


@contextlib.contextmanager
def keeping_others(folder: Path, patterns: Sequence[str], what: str) -> Iterator[None]:
    """Note, in ``folder``, which files the block writes there, and refuse to begin where it would replace others.

    Args:
        patterns: globs, relative to ``folder``, of all that the block may write.
        what: the command, for the message.

    Raises:
        LLPFError: naming a file that no such block wrote, or that was changed since.
    """
    known = _known(folder)
    for name, digest in _digests(folder, patterns).items():
        if known.get(name) != digest or digest == _UNREADABLE:
            raise LLPFError(
                f"{folder / name} was not written by {what}, or was changed since; move it away, or choose another "
                "folder with --out"
            )
    try:
        yield
    finally:
        # Where the disk refuses, the files count as somebody else's.
        with contextlib.suppress(LLPFError, OSError):
            now = {**known, **_digests(folder, patterns)}
            if now != known:
                _note(folder, now)


def remove_ours(folder: Path, what: str) -> None:
    """Empty ``folder`` of an earlier ``keeping_others(folder, ["**/*"], ...)``.

    Raises:
        LLPFError: it holds anything else; then nothing is removed.
    """
    known = _known(folder)
    found = _digests(folder, ["**/*"])
    for name, digest in found.items():
        if known.get(name) != digest or digest == _UNREADABLE:
            raise LLPFError(
                f"{folder} holds {name}, which {what} did not write, or which was changed since; choose another folder "
                "with --out, or delete it first"
            )
    # What a folder holds comes after it.
    for name, digest in reversed(found.items()):
        if digest == _FOLDER:
            (folder / name).rmdir()
        else:
            (folder / name).unlink()
    (folder / _LIST).unlink(missing_ok=True)


def _known(folder: Path) -> dict[str, str]:
    try:
        known = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _note(folder: Path, known: dict[str, str]) -> None:
    from ..path.durable import write_json

    write_json(folder / _LIST, dict(sorted(known.items())), durable=False)


def _digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """sha256 by name of the files that match, and the folders, in order."""
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
