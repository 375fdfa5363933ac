"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import LLPFError
from ..wording import unknown_name
from .cifar_jpeg import load_cifar10_jpeg
from .digits import load_digits
from .image_data import ImageData
from .torchvision_sets import load_cifar10, load_cifar100, load_mnist

#: Reads a data set: (folder or None, whether to download) -> ImageData.
Reader = Callable[[Path | None, bool], ImageData]

_READERS: dict[str, Reader] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar10-jpeg": load_cifar10_jpeg,
}


def register_dataset(name: str, reader: Reader, *, replace: bool = False) -> None:
    """Make ``reader(folder_or_None, download) -> ImageData`` known to recipes and to the command line as ``name``.

    Raises :class:`LLPFError` where the name is taken and ``replace`` is not set.
    """
    if name in _READERS and not replace:
        raise LLPFError(f"a data set named {name!r} is registered already; take another name or pass replace=True")
    _READERS[name] = reader


def dataset_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_READERS)


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> ImageData:
    """The data set ``name`` from folder ``root`` (``digits`` needs none), into memory.

    Nothing is downloaded unless ``download`` is set, and then only by torchvision's own data sets. Raises
    :class:`LLPFError` for an unknown name, a missing folder or file, and files that are not what they should be.
    """
    try:
        reader = _READERS[name]
    except KeyError:
        raise LLPFError(unknown_name("data set", name, _READERS)) from None
    return reader(None if root is None else Path(root).expanduser(), download)
