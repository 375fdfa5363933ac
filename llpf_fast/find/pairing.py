"""Which models are joined with which: folders of model files, and the four pairings of the LLPF authors' tool."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import LLPFError

Pairing = Literal["each-to-each", "all-to-all", "one-to-all", "all-to-one"]
PAIRINGS: tuple[str, ...] = get_args(Pairing)

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
#: What the LLPF authors' programs write beside ``x.model.pt``.
_NOT_MODELS = (".optimizer.pt",)


@dataclass(frozen=True)
class Pair:
    """One path to search; ``destination`` is None where the mode needs no model (origin, infinity, mean, spheres)."""

    start: Path
    destination: Path | None


@dataclass(frozen=True)
class Pairs:
    """The paths to search, in order, and the pairs left out because both files hold the same model."""

    pairs: list[Pair]
    equal: list[Pair]


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """``path`` itself, or the model files directly inside the folder ``path``, sorted by name (2 before 10).

    Model files end in .pt, .pth, .ckpt or .safetensors; hidden files and the authors' ``*.optimizer.pt`` are left out.

    Raises:
        LLPFError: there is no such path, or no model file in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise LLPFError(f"{path} is missing")
        return [path]
    files = [
        file
        for file in path.iterdir()
        if file.name.endswith(_SUFFIXES)
        and not file.name.endswith(_NOT_MODELS)
        and not file.name.startswith(".")
        and file.is_file()
    ]
    if not files:
        raise LLPFError(f"folder {path} holds no model files ({', '.join(_SUFFIXES)})")
    return sorted(files, key=lambda file: (_natural(file.name), file.name))


def make_pairs(
    starts: Sequence[Path], destinations: Sequence[Path], pairing: str, digests: Mapping[Path, str] | None = None
) -> Pairs:
    """The pairs to join.

    ``each-to-each``: the first start with the first destination, and so on; ``all-to-all``: every start with every
    destination, and where both are the same files each unordered pair once; ``one-to-all``: the only start with every
    destination; ``all-to-one``: every start with the only destination.

    Args:
        starts, destinations: files, in order.
        digests: of what each file holds; files of one digest are equal models. They make no pair: ``Pairs.equal`` has
            them (LLPFError in each-to-each, where such a pair means that the folders do not match).

    Raises:
        LLPFError: unknown pairing; other numbers of files than it needs; nothing left to join.
    """
    if pairing not in PAIRINGS:
        raise LLPFError(f"unknown pairing {pairing!r}; known: {', '.join(PAIRINGS)}")
    if pairing == "each-to-each" and len(starts) != len(destinations):
        raise LLPFError(
            f"each-to-each needs as many destinations as starts, found {len(starts)} starts and "
            f"{len(destinations)} destinations"
        )
    for one, files, name in (("one-to-all", starts, "start"), ("all-to-one", destinations, "destination")):
        if pairing == one and len(files) != 1:
            raise LLPFError(f"{one} needs exactly one {name}, found {len(files)}")
    digests = digests or {}
    different: list[Pair] = []
    equal: list[Pair] = []
    for pair in _all_pairs(starts, destinations, pairing):
        assert pair.destination is not None
        same = pair.start.resolve() == pair.destination.resolve() or (
            pair.start in digests and digests[pair.start] == digests.get(pair.destination)
        )
        (equal if same else different).append(pair)
    if equal and pairing == "each-to-each":
        raise LLPFError(f"{equal[0].start} and {equal[0].destination} hold the same model: there is no path to find")
    if not different:
        raise LLPFError("every start holds the same model as its destination: there is no path to find")
    return Pairs(different, equal)


def _all_pairs(starts: Sequence[Path], destinations: Sequence[Path], pairing: str) -> list[Pair]:
    if pairing == "each-to-each":
        return [Pair(*both) for both in zip(starts, destinations, strict=True)]
    if pairing == "all-to-all" and {*map(Path.resolve, starts)} == {*map(Path.resolve, destinations)}:
        return [Pair(a, b) for i, a in enumerate(starts) for b in starts[i + 1 :]]
    return [Pair(a, b) for a in starts for b in destinations]


def stem(path: Path) -> str:
    """The file's name without the suffixes of a model file: ``3.model.pt`` is 3, ``a.safetensors`` is a."""
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removesuffix(".model") or path.name


def run_names(pairs: Sequence[Pair], without_destination: str) -> list[str]:
    """The folder of each pair's run: ``<start>--<destination>``, by ``stem``, or ``<start>--<without_destination>``.

    Raises:
        LLPFError: two pairs would share a folder, also where names differ in upper and lower case only, because some
            file systems do not tell them apart.
    """
    names: list[str] = []
    owners: dict[str, Pair] = {}
    for pair in pairs:
        name = f"{stem(pair.start)}--{stem(pair.destination) if pair.destination else without_destination}"
        other = owners.setdefault(name.casefold(), pair)
        if other != pair:
            a, b = (other.start, pair.start) if other.start != pair.start else (other.destination, pair.destination)
            raise LLPFError(f"{a} and {b} would both be called {name} in the output folder; rename one of them")
        names.append(name)
    return names


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]
