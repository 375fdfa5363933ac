"""Empty stand-ins for the objects that checkpoints hold beside a state dict: none of their code is executed."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Inert:
    """Stands in for a number, a date, a path, ...: drops all arguments and its state."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Dictionary:
    """Stands in for a class derived from dict: its entries go to an OrderedDict."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List:
    """Stands in for a class derived from list."""

    def __new__(cls, *_: Any) -> Any:
        return []


#: Their names in pickles, by their names in messages. NumPy's functions are replaced too: with a forged dtype they can
#: be made to read foreign memory.
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
    # As the factory of a defaultdict, or as a type in a configuration.
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
    # Lightning before 1.5 used the classes of its callbacks as keys.
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
    allowed: list[tuple[Callable[..., Any], str]] = []
    for what, names in _STAND_INS.items():
        kind = type(what, (_Inert,), {})
        allowed += [(kind, name) for name in names]
    allowed += [(_Dictionary, name) for name in _DICTIONARIES]
    allowed += [(_List, name) for name in _LISTS]
    # The extra state of modules is compared, so io.BytesIO is read as itself.
    allowed.append((io.BytesIO, "_io.BytesIO"))
    return allowed


_ALLOWED = _stand_ins()
_lock = threading.Lock()


@contextmanager
def pickle_stand_ins() -> Iterator[None]:
    """A context in which ``torch.load(weights_only=True)`` also reads the names above, as stand-ins."""
    # torch's list of safe globals is one for all threads.
    with _lock, torch.serialization.safe_globals(list(_ALLOWED)):
        yield
