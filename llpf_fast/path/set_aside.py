"""Waypoints that were dropped from the path but that the last checkpoint still needs."""

from __future__ import annotations

import os
from pathlib import Path

from .atomic import read_json, sync_folder, write_json, writing
from .waypoint import is_waypoint_file


class SetAside:
    """Dropped waypoints, kept in the checkpoint's folder until the next checkpoint replaces the one that needs them.

    A search may drop waypoints that are older than its last checkpoint (a rollback, a thinning) and record others under
    the same numbers. Killed then, it resumes at the checkpoint, which counts the dropped ones. So their index lines go
    to ``set_aside.json`` and their files are renamed into this folder: no copying.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._list = folder / "set_aside.json"

    def read(self, serial: int) -> tuple[int, list[bytes]] | None:
        """Number of the first dropped waypoint and the index lines from it on, for checkpoint ``serial``."""
        if not self._list.exists():
            return None
        content = read_json(self._list)
        if content.get("checkpoint") != serial:
            return None
        return content["first"], [line.encode() + b"\n" for line in content["lines"]]

    def write(self, serial: int, first: int, lines: list[bytes]) -> None:
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        text = [line.decode().rstrip("\n") for line in lines]
        write_json(self._list, {"checkpoint": serial, "first": first, "lines": text})

    def take(self, files: list[Path]) -> None:
        """Move ``files`` here."""
        with writing(self._folder):
            for file in files:
                os.replace(file, self._folder / file.name)
            sync_folder(self._folder)

    def give_back(self, files: list[Path]) -> None:
        """Move back those of ``files`` that lie here; the others were never taken, or were given back before a kill."""
        with writing(self._folder):
            for file in files:
                if (self._folder / file.name).exists():
                    os.replace(self._folder / file.name, file)

    def clear(self) -> None:
        """Forget everything: the list first, so that it never names files that are gone."""
        if not self._folder.exists():
            return
        with writing(self._folder):
            self._list.unlink(missing_ok=True)
            for file in filter(is_waypoint_file, list(self._folder.iterdir())):
                file.unlink(missing_ok=True)
