"""Things that real checkpoints hold beside a state dict, read as empty stand-ins: nothing of theirs is executed."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Inert:
    """Takes the place of a number, a date, a path ...: whatever it is made from and filled with is dropped."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Dictionary:
    """Takes the place of a class derived from dict: its entries are kept in a plain one."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List:
    """The same for lists."""

    def __new__(cls, *_: Any) -> Any:
        return []


#: What a pickle calls them, by what a message calls them. NumPy's own functions are not called: with a forged dtype
#: they can be made to read foreign memory.
_STAND_INS: dict[str, tuple[str, ...]] = {
    "NumPy number": ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    "NumPy array": (
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.numeric._frombuffer",
        "numpy.core.numeric._frombuffer",
        "numpy.ndarray",
    ),
    "NumPy dtype": ("numpy.dtype",),
    "Namespace": ("argparse.Namespace", "types.SimpleNamespace"),
    "path": tuple(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    "date": tuple(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    "number": ("decimal.Decimal", "fractions.Fraction"),
    "UUID": ("uuid.UUID",),
    "frozenset": ("builtins.frozenset",),
    "slice": ("builtins.slice",),
    "range": ("builtins.range",),
    "version": ("torch.torch_version.TorchVersion",),
    # As the factory of a defaultdict, or as a type that a configuration notes.
    "type": (*(f"builtins.{kind}" for kind in ("int", "float", "bool", "str", "list", "dict", "tuple")), "typing.Any"),
    "configuration": (
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        *(f"omegaconf.base.{kind}" for kind in ("ContainerMetadata", "Metadata")),
        *(
            f"omegaconf.nodes.{kind}Node"
            for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Interpolation")
        ),
    ),
    # Lightning before 1.5 used its callbacks' classes as keys.
    "Lightning callback": (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    ),
}
_DICTIONARIES = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_LISTS = ("collections.deque",)


def _stand_ins() -> list[tuple[Callable[..., Any], str]]:
    found: list[tuple[Callable[..., Any], str]] = []
    for what, names in _STAND_INS.items():
        kind = type(what, (_Inert,), {})
        found += [(kind, name) for name in names]
    found += [(_Dictionary, name) for name in _DICTIONARIES]
    found += [(_List, name) for name in _LISTS]
    # Extra state of modules is compared, so it is read as it is: bytes in memory.
    found.append((io.BytesIO, "_io.BytesIO"))
    return found


_ALLOWED = _stand_ins()
_lock = threading.Lock()


@contextmanager
def harmless_stand_ins() -> Iterator[None]:
    """Within it ``torch.load(weights_only=True)`` reads the names above as stand-ins, and refuses what it refused."""
    # torch keeps one list for all threads.
    with _lock, torch.serialization.safe_globals(list(_ALLOWED)):
        yield
