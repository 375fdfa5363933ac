"""The package's exceptions, parts of their messages, and imports of optional packages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class LLPFError(ValueError):
    """Wrong input or an impossible request; the message is one line.

    It names the cause (a file, a layer, a key, both sizes that differ) and the remedy. The command line prints it
    without a traceback and exits with status 2.
    """

    def __init__(self, message: object = "") -> None:
        # Paths and texts of users may contain line breaks.
        super().__init__(" ".join(str(message).splitlines()))


class MissingPackageError(LLPFError, ImportError):
    """An optional package is missing, or cannot be imported."""


#: Optional packages by the module that is imported: the name to install, and the extra in pyproject.toml.
_OPTIONAL = {
    "torchvision": ("torchvision", "vision"),
    "PIL": ("pillow", "vision"),
    "sklearn": ("scikit-learn", "digits"),
    "timm": ("timm", "models"),
    "vit_pytorch": ("vit-pytorch", "models"),
    "matplotlib": ("matplotlib", "report"),
    "plotly": ("plotly", "report"),
    "jinja2": ("jinja2", "report"),
    "scipy": ("scipy", "analysis"),
    "imageio_ffmpeg": ("imageio-ffmpeg", "analysis"),
}


def require(module: str, user: str) -> Any:
    """The imported ``module`` of an optional package.

    Args:
        module: e.g. "torchvision.models"; its first part is one of the modules above.
        user: what needs it, as the subject of the message.

    Raises:
        MissingPackageError: as ``data 'mnist' needs torchvision: pip install 'llpf_fast[vision]'``.
    """
    try:
        return import_module(module)
    # A torchvision that was built for another torch raises RuntimeError: an operator does not exist.
    except (ImportError, RuntimeError) as error:
        name = module.partition(".")[0]
        package, extra = _OPTIONAL[name]
        if not (isinstance(error, ModuleNotFoundError) and error.name in (name, module)):
            package += f", which cannot be imported ({one_line(error)})"
        raise MissingPackageError(f"{user} needs {package}: pip install 'llpf_fast[{extra}]'") from error


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 60, 60, 60


def one_line(text: object) -> str:
    """``str(text)`` with every run of white space as one space."""
    return " ".join(str(text).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its class where it has none."""
    text = str(error).strip()
    if isinstance(error, KeyError):
        return f"KeyError {text}"
    return text.splitlines()[0] if text else type(error).__name__


def describe_error(error: BaseException) -> str:
    """Class and text of an error in one line: ``KeyError: 'x'``."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shown(value: object) -> str:
    """``repr`` of a value of any size, abbreviated to 60 characters."""
    text = one_line(_SHORT.repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown recipe 'lenet-mnist'; did you mean 'lenet5-mnist-m2m'?``, or all known names where none is similar."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known)}"
