"""The loss of one batch, and what a user's model or loss function can do wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import LLPFError

LossFunction = Callable[[Any, Any], Tensor]


def loss_of(module: Callable[[Any], Any], loss_fn: LossFunction, inputs: Any, targets: Any) -> Tensor:
    """The scalar loss of ``module`` on one batch.

    Raises:
        LLPFError: the forward or the loss function fails, or gives no scalar tensor.
    """
    try:
        output = module(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise LLPFError(f"the model's forward fails on data of {_shape(inputs)}: {_first_line(error)}") from error
    try:
        loss = loss_fn(output, targets)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise LLPFError(
            f"the loss function fails on output of {_shape(output)} and targets of {_shape(targets)}: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise LLPFError(f"the loss function must return a scalar tensor, the mean over the batch; got {_shape(loss)}")
    return loss


def _shape(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
