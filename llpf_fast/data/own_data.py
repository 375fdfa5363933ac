"""A user's own data, from a function named ``file.py:function``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError
from ..user_code import load_callable
from ..wording import one_line
from .image_data import ImageData

_PARTS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


def load_own_data(name: str, root: Path | None = None) -> ImageData:
    """What the function that ``name`` names returns: ``(train_x, train_y, test_x, test_y)``.

    Tensors or NumPy arrays whose first dimension counts samples: inputs and targets of any shape, float64 becomes
    float32, other dtypes stay (whole numbers as int64). A function with a parameter is handed ``root``, the folder
    given with ``--data`` (None where none was). There are ``classes`` where the targets are whole numbers ``[n]``,
    else 0.

    Raises:
        LLPFError: naming the function, when it fails or gives something else.
    """
    function = load_callable(name, "data")
    try:
        parts = function(root) if inspect.signature(function).parameters else function()
    except LLPFError:
        raise
    except Exception as error:
        raise LLPFError(f"data {name!r} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(parts, (tuple, list)) or len(parts) != len(_PARTS):
        what = f"{len(parts)} values" if isinstance(parts, (tuple, list)) else f"a {type(parts).__name__}"
        raise LLPFError(f"data {name!r} gave {what}; it must return ({', '.join(_PARTS)})")
    tensors = [_tensor(part, f"data {name!r}: {part_name}") for part_name, part in zip(_PARTS, parts, strict=True)]
    for kind, (inputs, targets) in {"training": tensors[:2], "test": tensors[2:]}.items():
        if len(inputs) != len(targets):
            raise LLPFError(f"data {name!r} has {len(inputs)} {kind} inputs but {len(targets)} targets")
        if len(inputs) == 0:
            raise LLPFError(f"data {name!r} has no {kind} samples")
    targets = torch.cat([tensors[1].flatten(), tensors[3].flatten()])
    whole = tensors[1].dim() == 1 and not targets.is_floating_point()
    source, _, called = name.rpartition(":")
    classes = int(targets.max()) + 1 if whole else 0
    train_x, train_y, test_x, test_y = tensors
    return ImageData(name, train_x, train_y, test_x, test_y, classes, f"{called} ({Path(source).name})", (), ())


def _tensor(value: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LLPFError(f"{what} is a {type(value).__name__}, not a tensor or an array") from error
    if tensor.dim() == 0:
        raise LLPFError(f"{what} is one number, not samples")
    if tensor.is_floating_point():
        if not bool(tensor.isfinite().all()):
            raise LLPFError(f"{what} has values that are NaN or infinite")
        return tensor.float().contiguous()
    return tensor.to(torch.int64).contiguous()
