"""One iteration of a correction with any ``torch.optim`` optimiser, and its learning rates per layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..batches.loss import ForwardLoss
from ..errors import LLPFError, first_line
from ..flat import FlatParameters
from .sgd_step import SgdStep


def one_group_each(module: nn.Module) -> Iterable[dict[str, Any]]:
    """Parameter groups to make an optimiser from, one for every parameter of ``module`` (tied ones once)."""
    return [{"params": [parameter]} for parameter in module.parameters()]


class LayerRates:
    """Scales the learning rate of every group by its segment's factor.

    Args:
        optimizer: made from :func:`one_group_each`; its present learning rates are the base.
        flat: whose segments the factors belong to.

    Raises:
        LLPFError: the optimiser has put the parameters into other groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, flat: FlatParameters) -> None:
        names = {id(parameter): name for name, parameter in flat.module.named_parameters()}
        segment = {name.partition("[")[0]: i for i, name in reversed(list(enumerate(flat.table.names)))}
        self._optimizer = optimizer
        #: Base rate and segment of each group; None for parameters without elements.
        self._bases: list[tuple[float, int] | None] = []
        for group in optimizer.param_groups:
            if len(group["params"]) != 1 or "lr" not in group:
                raise LLPFError(
                    "the learning-rate rule needs one parameter group with an lr for each parameter: "
                    "let the optimizer function pass on the groups it is given, or set correction.lr_rule to none"
                )
            at = segment.get(names.get(id(group["params"][0]), ""))
            self._bases.append(None if at is None else (float(group["lr"]), at))

    def set(self, scale: Tensor | None) -> None:
        """Scale the rates by float64 ``[S]``, which the host reads once; None: the base rates."""
        factors = None if scale is None else scale.tolist()
        # Groups by index, not by object: load_state_dict makes new ones.
        for group, base_and_segment in zip(self._optimizer.param_groups, self._bases, strict=True):
            if base_and_segment is not None:
                base, at = base_and_segment
                group["lr"] = base if factors is None else base * factors[at]


class OptimizerStep:
    """Forward, loss, gate, backward and ``optimizer.step`` on one batch.

    Args:
        sgd_step: whose gate state and rule are used.

    Attributes:
        needs_closure: whether ``optimizer.step`` must be given a closure, with which it takes the gradient of one
            batch several times (``torch.optim.LBFGS``).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, flat: FlatParameters, forward_loss: ForwardLoss, sgd_step: SgdStep
    ) -> None:
        self._optimizer, self._flat, self._forward_loss, self._sgd_step = optimizer, flat, forward_loss, sgd_step
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    def train(self, inputs: Any, targets: Any) -> int:
        """Train on one batch; returns how often its gradient was taken.

        The gate counts one loss a batch: the one before any update.

        Raises:
            LLPFError: see :class:`ForwardLoss`; an optimiser that never called the closure it asked for.
        """
        gradients = 0

        # optimizer.step may run under no_grad and call this without switching gradients on.
        @torch.enable_grad()
        def gradient() -> Tensor:
            nonlocal gradients
            self._flat.zero_grad()
            loss = self._forward_loss(inputs, targets)
            if not gradients:
                torch.ops.llpf_fast.loss_gate_.default(self._sgd_step.state, loss.detach(), **self._sgd_step.rule)
            loss.backward()
            gradients += 1
            return loss

        name = type(self._optimizer).__name__
        if not self.needs_closure:
            gradient()
        try:
            if self.needs_closure:
                # torch annotates a closure as giving a float, and hands on what it gives.
                self._optimizer.step(gradient)  # type: ignore[arg-type]
            else:
                self._optimizer.step()
        except LLPFError:
            raise
        except SystemExit as error:
            raise LLPFError(
                f"{name}.step ends the program (exit status {error.code}); let it raise an error"
            ) from error
        except Exception as error:  # a user's optimiser raises anything; SAM asserts that it is given a closure
            raise LLPFError(
                f"{name}.step fails: {type(error).__name__}: {first_line(error)}; an optimizer must step from the "
                "gradients there are, or take one closure (step(closure))"
            ) from error
        if not gradients:
            raise LLPFError(f"{name}.step asks for a closure but never calls it")
        return gradients
