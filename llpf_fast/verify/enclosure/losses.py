"""Upper bounds of a loss on outputs that are enclosed: the worst corner of each sample's box of outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...batches.loss import LossReduction
from .form import NotEnclosedError

#: Losses that are sums over elements of a convex function of one output each: the worst end of each interval.
_SEPARABLE = frozenset(
    (
        *("binary_cross_entropy_with_logits", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "mse_loss"),
        *("poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss"),
    )
)
#: Losses of class labels that fall with the label's output and rise with every other: one corner.
_MARGINS = frozenset(["cross_entropy", "multi_margin_loss"])
#: Cross-entropy with soft labels evaluates as many corners as classes, [B, C, C] numbers.
_MOST_SOFT_CLASSES = 256


class LossBound:
    """Upper bounds of each sample's numerator (:meth:`LossReduction.values`) over boxes of outputs.

    All losses here are convex in the outputs. So the largest value over a box lies in a corner, and along a chord of
    boxes the largest value is convex: it lies below the chord of its values at both ends.

    Args:
        reduction: of a loss whose tensors are float64.

    Raises:
        NotEnclosedError: the loss is none of those, or has negative weights.
    """

    def __init__(self, reduction: LossReduction) -> None:
        self._reduction, self._name = reduction, reduction.function
        options = reduction.options
        supported = self._name in _SEPARABLE or self._name in _MARGINS or self._name == "nll_loss"
        if not reduction.exact or not supported:
            raise NotEnclosedError(f"the loss {reduction.name} has no rule of enclosure")
        for option in ("weight", "pos_weight"):
            weight = options.get(option)
            if isinstance(weight, Tensor) and not bool((weight >= 0).all()):
                raise NotEnclosedError(f"the loss {reduction.name} with a negative {option} has no rule of enclosure")
        if self._name == "poisson_nll_loss" and not options.get("log_input", True):
            raise NotEnclosedError("poisson_nll_loss with log_input=False has no rule of enclosure")
        self._weight = options.get("weight")

    @property
    def takes_logits(self) -> bool:
        """Whether a network's log-softmax may be left out: its corners are those of the logits."""
        return self._name in ("cross_entropy", "nll_loss")

    def upper(self, outputs: Tensor, radius: Tensor, targets: Tensor, *, logits: bool = False) -> Tensor:
        """Upper bounds of the numerators, float64 ``[B]``, for outputs within ``radius`` of ``outputs`` (float64).

        With ``logits`` the network's outputs are the log-softmax of these along dimension 1.

        Evaluated in float64; what that rounds is added. Infinite where it is NaN.
        """
        weights = (self._reduction.options.get(name) for name in ("weight", "pos_weight"))
        if any(isinstance(w, Tensor) and w.dim() >= outputs.dim() and w.shape[0] != 1 for w in weights):
            raise NotEnclosedError(f"the loss {self._reduction.name} with weights for each sample has no rule")
        if self._name in _MARGINS and not targets.is_floating_point():
            worst = self._numerators(self._label_corner(outputs, radius, targets), targets)
            if self._reduction.smooths:
                worst = self._soft(outputs, radius, targets)
        elif self._name == "cross_entropy":
            worst = self._soft(outputs, radius, targets)
        elif self._name == "nll_loss" and logits:
            worst = self._numerators(self._label_corner(outputs, radius, targets).log_softmax(1), targets)
        elif self._name == "nll_loss":
            # Linear in the outputs, and falling in each.
            worst = self._numerators(outputs - radius, targets)
        else:
            worst = self._separable(outputs, radius, targets)
        scale = 1.0 if not isinstance(self._weight, Tensor) else max(1.0, float(self._weight.max()))
        reach = (outputs.abs() + radius).flatten(1).sum(1) if outputs.dim() > 1 else outputs.abs() + radius
        elements = targets[0].numel() if len(targets) else 1
        slack = 1e-13 * (worst.abs() + scale * (elements + reach * (1 + elements)))
        return torch.nan_to_num(worst + slack, nan=torch.inf, posinf=torch.inf)

    def _numerators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        pair = self._reduction.values(outputs, targets)
        if pair is None:
            raise NotEnclosedError(f"the loss {self._reduction.name} has no values of single samples here")
        return pair[0]

    def _label_corner(self, outputs: Tensor, radius: Tensor, targets: Tensor) -> Tensor:
        labels = targets.long().clamp(0, outputs.shape[1] - 1).unsqueeze(1)
        return (outputs + radius).scatter(1, labels, (outputs - radius).gather(1, labels))

    def _soft(self, outputs: Tensor, radius: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with soft labels is a sum over classes c of q_c times that of label c, each at its corner."""
        classes = outputs.shape[1]
        if outputs.dim() != 2 or classes > _MOST_SOFT_CLASSES:
            raise NotEnclosedError("cross_entropy with soft labels of many classes or several dimensions has no rule")
        if targets.is_floating_point():
            shares = targets.double()
            if not bool((shares >= 0).all()):
                raise NotEnclosedError("cross_entropy with negative label probabilities has no rule of enclosure")
            counted = torch.ones(len(targets), dtype=torch.float64, device=outputs.device)
        else:
            counted = self._reduction.labelled(targets).double()
            shares = torch.nn.functional.one_hot(targets.long().clamp(0, classes - 1), classes).double()
        smoothing = float(self._reduction.options.get("label_smoothing") or 0.0)
        shares = shares * (1 - smoothing) + smoothing / classes
        high, low = outputs + radius, outputs - radius
        corners = high.unsqueeze(1) + torch.diag_embed(low - high)  # [B, c, outputs]
        each = corners.logsumexp(2) - low
        weight = 1.0 if self._weight is None else self._weight.double()
        return (each * shares * weight).sum(1) * counted

    def _separable(self, outputs: Tensor, radius: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise NotEnclosedError(
                f"the loss {self._reduction.name} with targets of another shape has no rule of enclosure"
            )
        if self._reduction.options.get("pos_weight") is not None and not bool(((targets >= 0) & (targets <= 1)).all()):
            raise NotEnclosedError(
                "binary_cross_entropy_with_logits with pos_weight and targets outside 0..1 has no rule"
            )
        element: Callable[[Tensor, Tensor], Tensor] = self._reduction.unreduced
        worst = torch.maximum(element(outputs - radius, targets), element(outputs + radius, targets)).double()
        return worst.flatten(1).sum(1) if worst.dim() > 1 else worst
