"""Options that several commands have, and checks of their values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError

if TYPE_CHECKING:
    from argparse import _ActionsContainer

    import torch
    from torch import nn

#: Parameters below which one thread is at least as fast as several, and ten times faster on a busy machine (LeNet5).
_SMALL_MODEL = 1_000_000
_MOST_THREADS = 1024


def user_path(text: str) -> str:
    """A file, folder or code as typed, with ``~`` expanded, which a shell does not do in ``--data-dir=~/mnist``."""
    if not text or "\0" in text:
        raise ValueError
    path = os.path.expanduser(text)
    # The "~" of an unknown user is a name, which nothing later may expand.
    return os.path.join(".", path) if path.startswith("~") else path


def add_data_dir(parser: _ActionsContainer) -> None:
    parser.add_argument("--data-dir", type=user_path, metavar="DIR", help="folder of the data; digits need none")


def add_device(parser: _ActionsContainer) -> None:
    parser.add_argument("--device", type=str, default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N")


def add_threads(parser: _ActionsContainer) -> None:
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: 1 for networks below a million parameters, otherwise torch's choice)",
    )


def add_loss(parser: _ActionsContainer) -> None:
    parser.add_argument(
        "--loss", type=user_path, metavar="NAME", help="mse_loss, ... of torch.nn.functional, or FILE.py:FUNCTION"
    )


def add_quiet(parser: _ActionsContainer) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress, only results and errors")


def choose_device(name: str) -> torch.device:
    """The torch device ``name``; :class:`LLPFError` where there is none."""
    from ..batches.precision import checked_device

    try:
        return checked_device(name)
    except LLPFError as error:
        raise LLPFError(f"--{error}") from None


def set_threads(threads: int | None, model: nn.Module) -> None:
    """Set torch's thread count: ``threads``, or 1 for small models; not measured, so that runs can be repeated."""
    import torch

    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    elif sum(parameter.numel() for parameter in model.parameters()) < _SMALL_MODEL:
        torch.set_num_threads(1)


def check_threads(threads: int) -> None:
    if not 1 <= threads <= _MOST_THREADS:
        raise LLPFError(f"--threads must be at least 1 and at most {_MOST_THREADS:,}, got {threads}")


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Raise LLPFError where the file exists or cannot be written."""
    if path.is_dir():
        raise LLPFError(f"{path} is a folder; name a file")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise LLPFError(f"{path} exists already; choose another name or pass --overwrite")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise LLPFError(f"folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise LLPFError(f"folder {folder} cannot be written to; choose another")
