"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import LLPFError
from ..user_code import is_code
from ..wording import unknown_name
from .cifar_jpeg import load_cifar10_jpeg
from .digits import load_digits
from .image_data import ImageData
from .own_data import OwnData, load_own_data
from .torchvision_sets import load_cifar10, load_cifar100, load_mnist

#: Reads a data set: (folder or None, whether to download) -> ImageData.
Reader = Callable[[Path | None, bool], ImageData | OwnData]

_READERS: dict[str, Reader] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar10-jpeg": load_cifar10_jpeg,
}
_CLASSES: dict[str, int | None] = {"digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100, "cifar10-jpeg": 10}


def register_dataset(name: str, reader: Reader, *, classes: int | None = None, replace: bool = False) -> None:
    """Make ``reader(folder_or_None, download) -> ImageData`` known to recipes and to the command line as ``name``.

    ``classes`` is what networks built for these data get as their number of outputs, before anything is read; without
    it they keep their default of 10. Raises :class:`LLPFError` where the name is taken and ``replace`` is not set.
    """
    if name in _READERS and not replace:
        raise LLPFError(f"a data set named {name!r} is registered already; take another name or pass replace=True")
    _READERS[name] = reader
    _CLASSES[name] = classes


def dataset_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_READERS)


def dataset_classes(name: str) -> int | None:
    """Number of classes of the data set ``name``, without reading it; None where its registration does not say.

    A function of one's own (``file.py:function``) says nothing either: registered networks keep their default of 10.

    Raises :class:`LLPFError` for an unknown name.
    """
    if is_code(name):
        return None
    _reader(name)
    return _CLASSES.get(name)


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False
) -> ImageData | OwnData:
    """The data set ``name`` from folder ``root`` (``digits`` needs none), into memory.

    A name like ``file.py:function`` calls a function of one's own: :func:`load_own_data`.

    Nothing is downloaded unless ``download`` is set, and then only by torchvision's own data sets. Raises
    :class:`LLPFError` for an unknown name, a missing folder or file, and files that are not what they should be.
    """
    return _reader(name)(None if root is None else Path(os.path.expanduser(root)), download)


def _reader(name: str) -> Reader:
    if is_code(name):
        return lambda root, _: load_own_data(name, root)
    try:
        return _READERS[name]
    except KeyError:
        raise LLPFError(unknown_name("data set", name, _READERS)) from None
