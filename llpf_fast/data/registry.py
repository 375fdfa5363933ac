"""Data sets by name, and a user's own by ``file.py:function``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batches.batch import move_batch
from ..batches.data import Data, TensorData, as_data, pair_data
from ..errors import LLPFError, describe_error, unknown_name
from ..user_code import is_code, load_callable
from .cifar_jpeg import load_cifar10_jpeg
from .dataset import ImageData
from .digits import load_digits
from .torchvision_sets import load_cifar10, load_cifar100, load_mnist

_FORMS = (
    "return (train_inputs, train_targets, test_inputs, test_targets), or (train, test), each a pair, a Dataset, a "
    "DataLoader or a list of batches"
)


@dataclass(frozen=True)
class OwnData:
    """A training and a test set of the user's, in whatever form they came; ``test`` may be missing.

    ``classes`` is the number of classes where the targets are whole numbers ``[n]`` in memory, else 0. ``label`` is
    what figures and reports call the data.
    """

    name: str
    train: Data
    test: Data | None
    classes: int
    label: str

    @property
    def train_inputs(self) -> Any:
        """As float32, where samples are in memory; else LLPFError."""
        return self._in_memory(self.train)[0]

    @property
    def train_targets(self) -> Any:
        return self._in_memory(self.train)[1]

    @property
    def test_inputs(self) -> Any:
        return self._in_memory(self.test)[0]

    @property
    def test_targets(self) -> Any:
        return self._in_memory(self.test)[1]

    def _in_memory(self, data: Data | None) -> tuple[Any, Any]:
        if not isinstance(data, TensorData):
            raise LLPFError(f"data {self.name!r} are no samples in memory, which this needs: return tensors or arrays")
        return move_batch(data.inputs, data.targets, torch.device("cpu"), torch.float32)


def load_own_data(name: str, root: Path | None = None) -> OwnData:
    """What the function that ``name`` names returns.

    That is ``(train_x, train_y, test_x, test_y)``, arrays or tuples and mappings of arrays whose first dimension counts
    samples; or ``(train, test)`` (or a mapping of these two), each anything that
    :func:`~llpf_fast.batches.data.as_data` takes, the test set also None. A function with a parameter is handed
    ``root``, the folder given with the data (None where none was).

    Raises:
        LLPFError: naming the function, when it fails or gives something else.
    """
    function = load_callable(name, "data")
    try:
        parts = function(root) if inspect.signature(function).parameters else function()
    except LLPFError:
        raise
    except (Exception, SystemExit) as error:
        raise LLPFError(f"data {name!r} failed: {describe_error(error)}") from error
    train, test = _sides(name, parts)
    source, _, called = name.rpartition(":")
    return OwnData(name, train, test, _classes(train, test), f"{called} ({Path(source).name})")


def _sides(name: str, parts: Any) -> tuple[Data, Data | None]:
    kinds = f"training data of {name!r}", f"test data of {name!r}"
    if isinstance(parts, Mapping):
        if "train" not in parts:
            raise LLPFError(f"data {name!r} gave a mapping without 'train'; it must {_FORMS}")
        given: list[Any] = [parts["train"], parts.get("test")]
    elif isinstance(parts, (tuple, list)) and len(parts) == 4:
        given = [pair_data(parts[2 * i], parts[2 * i + 1], what) for i, what in enumerate(kinds)]
    elif isinstance(parts, (tuple, list)) and len(parts) == 2:
        given = list(parts)
    else:
        what = f"{len(parts)} values" if isinstance(parts, (tuple, list)) else f"a {type(parts).__name__}"
        raise LLPFError(f"data {name!r} gave {what}; it must {_FORMS}")
    train, test = (None if side is None else as_data(side, what) for side, what in zip(given, kinds, strict=True))
    if train is None:
        raise LLPFError(f"data {name!r} has no training data; it must {_FORMS}")
    for side in (train, test):
        if isinstance(side, TensorData):
            _check_finite(side)
    return train, test


def _check_finite(data: TensorData) -> None:
    for what, values in (("inputs", data.inputs), ("targets", data.targets)):
        if isinstance(values, Tensor) and values.is_floating_point() and not bool(values.isfinite().all()):
            raise LLPFError(f"the {data.what}: {what} has values that are NaN or infinite")


def _classes(*sides: Data | None) -> int:
    highest = -1
    for side in sides:
        if side is None:
            continue
        targets = side.targets if isinstance(side, TensorData) else None
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype.is_floating_point:
            return 0
        highest = max(highest, int(targets.max()))
    return highest + 1


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
