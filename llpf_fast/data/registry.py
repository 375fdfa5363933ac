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

_RETURN_VALUE = (
    "return (train_inputs, train_targets, test_inputs, test_targets), or (train, test), each a pair, a Dataset, a "
    "DataLoader or a list of batches"
)


@dataclass(frozen=True)
class UserData:
    """A user's training and test set, in any form that :func:`~llpf_fast.batches.data.as_data` takes.

    Attributes:
        name: ``file.py:function``.
        test: None where there is none.
        classes: number of classes where the targets are whole numbers ``[n]`` in memory, else 0.
        label: what figures and reports call the data.
    """

    name: str
    train: Data
    test: Data | None
    classes: int
    label: str

    @property
    def train_inputs(self) -> Any:
        """Floating values are float32. The four properties raise LLPFError where the samples are not in memory."""
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
            raise LLPFError(f"data {self.name!r} must be samples in memory here: return tensors or arrays")
        return move_batch(data.inputs, data.targets, torch.device("cpu"), torch.float32)


def load_user_data(name: str, root: Path | None = None) -> UserData:
    """The data that a user's function returns.

    Args:
        name: ``file.py:function``. The function returns ``(train_x, train_y, test_x, test_y)``: arrays, or tuples and
            mappings of arrays, whose first dimension counts samples. Or it returns ``(train, test)``, or a mapping of
            these two: each anything that :func:`~llpf_fast.batches.data.as_data` takes; the test set may be None.
        root: what the function gets if it has a parameter, the folder given with the data.

    Raises:
        LLPFError: the function fails or returns something else; values are not finite.
    """
    function = load_callable(name, "data")
    try:
        parts = function(root) if inspect.signature(function).parameters else function()
    except LLPFError:
        raise
    except (Exception, SystemExit) as error:
        raise LLPFError(f"data {name!r} failed: {describe_error(error)}") from error
    train, test = _split(name, parts)
    source, _, attribute = name.rpartition(":")
    return UserData(name, train, test, _classes(train, test), f"{attribute} ({Path(source).name})")


def _split(name: str, parts: Any) -> tuple[Data, Data | None]:
    """The training and the test set in what a user's function returned."""
    labels = f"training data of {name!r}", f"test data of {name!r}"
    if isinstance(parts, Mapping):
        if "train" not in parts:
            raise LLPFError(f"data {name!r} gave a mapping without 'train'; it must {_RETURN_VALUE}")
        given: list[Any] = [parts["train"], parts.get("test")]
    elif isinstance(parts, (tuple, list)) and len(parts) == 4:
        given = [pair_data(parts[2 * i], parts[2 * i + 1], what) for i, what in enumerate(labels)]
    elif isinstance(parts, (tuple, list)) and len(parts) == 2:
        given = list(parts)
    else:
        what = f"{len(parts)} values" if isinstance(parts, (tuple, list)) else f"a {type(parts).__name__}"
        raise LLPFError(f"data {name!r} gave {what}; it must {_RETURN_VALUE}")
    train, test = (None if part is None else as_data(part, what) for part, what in zip(given, labels, strict=True))
    if train is None:
        raise LLPFError(f"data {name!r} has no training data; it must {_RETURN_VALUE}")
    for data in (train, test):
        if isinstance(data, TensorData):
            _check_finite(data)
    return train, test


def _check_finite(data: TensorData) -> None:
    for what, values in (("inputs", data.inputs), ("targets", data.targets)):
        if isinstance(values, Tensor) and values.is_floating_point() and not bool(values.isfinite().all()):
            raise LLPFError(f"the {data.what}: {what} has values that are NaN or infinite")


def _classes(*parts: Data | None) -> int:
    """The number of classes, 0 where the targets are none."""
    highest = -1
    for data in parts:
        if data is None:
            continue
        targets = data.targets if isinstance(data, TensorData) else None
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype.is_floating_point:
            return 0
        highest = max(highest, int(targets.max()))
    return highest + 1


#: (folder or None, whether to download) -> data.
Reader = Callable[[Path | None, bool], ImageData | UserData]


@dataclass(frozen=True)
class _Entry:
    reader: Reader
    classes: int | None


_DATASETS: dict[str, _Entry] = {}


def register_dataset(name: str, reader: Reader, *, classes: int | None = None, replace: bool = False) -> None:
    """Make data known to recipes and to the command line as ``name``.

    Args:
        reader: (folder or None, whether to download) -> :class:`ImageData`.
        classes: number of outputs of networks that are built for the data, which is needed before anything is read.
            Without it they have their default of 10.
        replace: an entry of the same name.

    Raises:
        LLPFError: the name is taken and ``replace`` is not set.
    """
    if name in _DATASETS and not replace:
        raise LLPFError(f"a data set named {name!r} is registered already; take another name or pass replace=True")
    _DATASETS[name] = _Entry(reader, classes)


def dataset_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_DATASETS)


def dataset_classes(name: str) -> int | None:
    """Number of classes of the data set ``name``, without reading it.

    None for a user's function (``file.py:function``), and where the registration does not say.

    Raises:
        LLPFError: an unknown name.
    """
    return None if is_code(name) else _entry(name).classes


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False
) -> ImageData | UserData:
    """Read the data set ``name`` into memory.

    Args:
        name: a registered name, or a user's ``file.py:function`` (:func:`load_user_data`).
        root: folder of the files; ``digits`` needs none.
        download: let torchvision's data sets fetch files that are missing.

    Raises:
        LLPFError: an unknown name, a missing folder, file or package, damaged files.
    """
    folder = None if root is None else Path(os.path.expanduser(root))
    return load_user_data(name, folder) if is_code(name) else _entry(name).reader(folder, download)


def _entry(name: str) -> _Entry:
    try:
        return _DATASETS[name]
    except KeyError:
        raise LLPFError(unknown_name("data set", name, _DATASETS)) from None


register_dataset("digits", load_digits, classes=10)
register_dataset("mnist", load_mnist, classes=10)
register_dataset("cifar10", load_cifar10, classes=10)
register_dataset("cifar100", load_cifar100, classes=100)
register_dataset("cifar10-jpeg", load_cifar10_jpeg, classes=10)
