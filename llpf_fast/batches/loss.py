"""The loss of one batch, and what a user's model or loss function can do wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from .precision import Precision

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


NO_GRADIENT = "the loss depends on no parameter that trains: are all frozen, or is there a detach in the loss?"


class Passes:
    """The scalar loss of ``module`` on one batch, ready for ``backward``.

    Args:
        precision: ``bfloat16`` runs the forward pass under autocast; parameters, gradients and loss stay what they are.
        compile: let ``torch.compile`` turn forward and loss into one piece of code at the first batch.
    """

    def __init__(
        self, module: nn.Module, loss_fn: LossFunction, *, precision: Precision = "float32", compile: bool = False
    ) -> None:
        self._module, self._loss_fn = module, loss_fn
        self._narrow = precision == "bfloat16"
        self._compiled = torch.compile(lambda inputs, targets: loss_fn(module(inputs), targets)) if compile else None

    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        """
        Raises:
            LLPFError: the forward or the loss fails, gives no scalar tensor, or one that no parameter has a part in.
        """
        if self._narrow:
            # Its cache of converted weights must not outlive the pass: a captured graph would read what it freed.
            with torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False):
                loss = self._loss(inputs, targets)
        else:
            loss = self._loss(inputs, targets)
        if not loss.requires_grad:
            raise LLPFError(NO_GRADIENT)
        return loss

    def _loss(self, inputs: Any, targets: Any) -> Tensor:
        if self._compiled is None:
            return loss_of(self._module, self._loss_fn, inputs, targets)
        try:
            loss: Tensor = self._compiled(inputs, targets)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LLPFError(f"the compiled model or loss fails: {first}; set correction.compile to false") from error
        return loss
