"""``Passes``: a batch's loss, in the arithmetic that was asked for, interpreted or compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from .loss import LossFunction, loss_of
from .precision import Precision

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
