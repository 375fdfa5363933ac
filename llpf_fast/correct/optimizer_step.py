"""Per-layer learning rates for any ``torch.optim`` optimiser: one parameter group a parameter."""

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
        #: Base rate and segment, a group; None for parameters without elements.
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
        """``scale`` is float64 ``[S]``, read once by the host; None goes back to the base."""
        factors = None if scale is None else scale.tolist()
        # Groups by place, not by object: load_state_dict puts new ones there.
        for group, known in zip(self._optimizer.param_groups, self._bases, strict=True):
            if known is not None:
                base, at = known
                group["lr"] = base if factors is None else base * factors[at]


class OptimizerStep:
    """Forward, loss, gate, backward and ``optimizer.step`` on one batch.

    Args:
        gated: holds the gate's state and rule.

    Attributes:
        asks_again: whether ``optimizer.step`` must be given a closure with which it takes the gradient of one batch
            as often as it likes (``torch.optim.LBFGS``).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, flat: FlatParameters, passes: ForwardLoss, gated: SgdStep
    ) -> None:
        self._optimizer, self._flat, self._passes, self._gated = optimizer, flat, passes, gated
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        self.asks_again = closure is not None and closure.default is inspect.Parameter.empty

    def train(self, inputs: Any, targets: Any) -> int:
        """Returns how often the gradient was taken. The gate counts one loss a batch: the one before any update.

        Raises:
            LLPFError: see :class:`ForwardLoss`; an optimiser that never called the closure it asked for.
        """
        taken = 0

        # An optimiser's step runs without gradients, and need not switch them on for its closure.
        @torch.enable_grad()
        def gradient() -> Tensor:
            nonlocal taken
            self._flat.zero_grad()
            loss = self._passes(inputs, targets)
            if not taken:
                torch.ops.llpf_fast.loss_gate_.default(self._gated.state, loss.detach(), **self._gated.rule)
            loss.backward()
            taken += 1
            return loss

        name = type(self._optimizer).__name__
        if not self.asks_again:
            gradient()
        try:
            if self.asks_again:
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
        except Exception as error:  # optimisers of one's own raise anything; SAM asserts that it is given a closure
            raise LLPFError(
                f"{name}.step fails: {type(error).__name__}: {first_line(error)}; an optimizer must step from the "
                "gradients there are, or take one closure (step(closure))"
            ) from error
        if not taken:
            raise LLPFError(f"{name}.step asks for a closure but never calls it")
        return taken
