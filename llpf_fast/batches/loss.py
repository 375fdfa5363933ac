"""The loss of one batch, and how the losses of batches combine to the loss of a set."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..errors import LLPFError, first_line, shown
from ..types import LossFunction
from .forward import FAILURES, forward, shape_of
from .precision import Precision

NO_GRADIENT = "the loss depends on no parameter that trains: are all frozen, or is there a detach in the loss?"

#: torch's losses by the denominator of their mean over a batch: the sum of the weights of the labelled elements, the
#: number of elements, the number of samples.
_BY_CLASS = ("cross_entropy", "nll_loss")
_BY_ELEMENT = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
)
_REGRESSIONS = ("huber_loss", "l1_loss", "mse_loss")
_BY_SAMPLE = ("multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss")
#: Names of the functions whose value on a set can be computed exactly from batches.
TORCH_LOSSES = (*_BY_CLASS, *_BY_ELEMENT, *_BY_SAMPLE)
_FUNCTIONS = {getattr(F, name): name for name in TORCH_LOSSES}
#: Loss modules of torch: the function that each calls, and the attributes that it passes.
_MODULES: dict[type, tuple[str, tuple[str, ...]]] = {
    nn.CrossEntropyLoss: ("cross_entropy", ("weight", "ignore_index", "reduction", "label_smoothing")),
    nn.NLLLoss: ("nll_loss", ("weight", "ignore_index", "reduction")),
    nn.BCELoss: ("binary_cross_entropy", ("weight", "reduction")),
    nn.BCEWithLogitsLoss: ("binary_cross_entropy_with_logits", ("weight", "pos_weight", "reduction")),
    nn.HingeEmbeddingLoss: ("hinge_embedding_loss", ("margin", "reduction")),
    nn.HuberLoss: ("huber_loss", ("delta", "reduction")),
    nn.KLDivLoss: ("kl_div", ("log_target", "reduction")),
    nn.L1Loss: ("l1_loss", ("reduction",)),
    nn.MSELoss: ("mse_loss", ("reduction",)),
    nn.PoissonNLLLoss: ("poisson_nll_loss", ("log_input", "full", "eps", "reduction")),
    nn.SmoothL1Loss: ("smooth_l1_loss", ("beta", "reduction")),
    nn.SoftMarginLoss: ("soft_margin_loss", ("reduction",)),
    nn.MultiMarginLoss: ("multi_margin_loss", ("p", "margin", "weight", "reduction")),
    nn.MultiLabelMarginLoss: ("multilabel_margin_loss", ("reduction",)),
    nn.MultiLabelSoftMarginLoss: ("multilabel_soft_margin_loss", ("weight", "reduction")),
}
#: Defaults of torch's functions.
_DEFAULTS = {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "pos_weight": None}
_DEFAULTS |= {"margin": 1.0, "delta": 1.0, "log_target": False, "log_input": True, "full": False, "eps": 1e-8}
_DEFAULTS |= {"beta": 1.0, "p": 1}

#: Labels whose weights are computed at a time.
_LABELS_AT_ONCE = 1 << 22
#: torch's deprecated arguments for the reduction, which override ``reduction``.
_DEPRECATED_REDUCTIONS = ("size_average", "reduce")
#: Class weights that the name of a loss lists; above that their sha256.
_LISTED_WEIGHTS = 10
_CHOICES = (
    "cross-entropy needs outputs [B, C, ...] of at least two classes and whole-number targets [B, ...]; pass loss_fn "
    "(F.mse_loss, F.binary_cross_entropy_with_logits, any function of output and targets; --loss on the command line)"
)


def compute_loss(module: Callable[..., Any], loss_fn: LossFunction, inputs: Any, targets: Any) -> Tensor:
    """The scalar loss of ``module`` on one batch.

    Raises:
        LLPFError: the forward or the loss function fails, or gives no scalar tensor.
    """
    return batch_loss(loss_fn, forward(module, inputs), targets)


def batch_loss(loss_fn: LossFunction, output: Any, targets: Any) -> Tensor:
    """``loss_fn(output, targets)``, a scalar tensor; LLPFError where it fails or gives something else."""
    return _scalar(_call_loss(loss_fn, output, targets))


def _call_loss(loss_fn: LossFunction, output: Any, targets: Any) -> Any:
    try:
        return loss_fn(output, targets)
    except LLPFError:
        raise
    except FAILURES as error:
        raise LLPFError(
            f"the loss function fails on output of {shape_of(output)} and targets of {shape_of(targets)}: "
            f"{first_line(error)}"
        ) from error


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise LLPFError(f"the loss function must return a scalar tensor, the mean over the batch; got {shape_of(loss)}")
    if loss.is_complex():
        raise LLPFError("the loss function returns a complex number, which no threshold bounds; return its .abs()")
    return loss


def chosen_loss(loss_fn: LossFunction | None, output: Any, targets: Any) -> LossFunction:
    """``loss_fn``; cross-entropy where it is None and output and targets are those of classification.

    Raises:
        LLPFError: ``loss_fn`` is a class or not callable; it is None and the data are not classification, where
            cross-entropy may be meaningless (that of one class is always 0).
    """
    if isinstance(loss_fn, type):
        raise LLPFError(f"loss_fn is the class {loss_fn.__name__}; call it: loss_fn={loss_fn.__name__}()")
    if loss_fn is not None and not callable(loss_fn):
        raise LLPFError(
            "loss_fn must be a function of output and targets (F.mse_loss, nn.CrossEntropyLoss()), got "
            f"{shown(loss_fn)}"
        )
    if loss_fn is not None:
        return loss_fn
    if not is_classification(output, targets):
        raise LLPFError(
            f"no loss is given, and output of {shape_of(output)} with targets of {shape_of(targets)} is no "
            f"classification: {_CHOICES}"
        )
    return F.cross_entropy


def is_classification(output: Any, targets: Any) -> bool:
    """Whether these are logits ``[B, C, ...]`` of at least two classes and integers ``[B, ...]``."""
    return (
        isinstance(output, Tensor)
        and isinstance(targets, Tensor)
        and output.dim() >= 2
        and output.shape[1] > 1  # one output against integers is a regression of counts
        and output.is_floating_point()
        and targets.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
        and targets.shape == output.shape[:1] + output.shape[2:]
    )


class LossReduction:
    """How the values of a loss function on the batches of a set combine to its value on the set.

    The mean over a set is not the mean of its batches' means where samples weigh differently: class weights, ignored
    labels, targets of different length, sums. For torch's losses (functions, modules, ``functools.partial`` of them)
    the value on the set is that of one call on all of it, computed from numerators and denominators in float64. For
    any other callable it is the mean of its values on the batches, each weighted by its number of samples.

    Attributes:
        kind: "mean" or "sum" (torch's ``reduction``), or "batch means".
        name: of the loss in results and run.yaml, with every option that differs from torch's default.
        function, options: the name of torch's function and its options; empty for any other callable.
    """

    kind: Literal["mean", "sum", "batch means"]

    def __init__(self, loss_fn: LossFunction) -> None:
        self._loss_fn = loss_fn
        known = _torch_loss(loss_fn)
        self.function, self.options = known if known is not None else ("", {})
        reduction = self.options.get("reduction", "mean")
        # Element weights of regressions fit one batch only, and torch divides by their sum.
        weighted = self.function in _REGRESSIONS and self.options.get("weight") is not None
        if known is None or reduction not in ("mean", "sum", "batchmean") or weighted:
            self.kind = "batch means"
        else:
            self.kind = "sum" if reduction == "sum" else "mean"
        self.name = _name(loss_fn) if known is None else _torch_name(self.function, self.options)

    @property
    def exact(self) -> bool:
        """Whether the value on a set is that of one call on all of it."""
        return self.kind != "batch means"

    @property
    def ignore_index(self) -> int | None:
        """The target that counts as no label; None where the loss has none."""
        return self.options.get("ignore_index", -100) if self.function in _BY_CLASS else None

    @property
    def smooths(self) -> bool:
        """Whether the loss smooths labels, so that every class contributes to every sample's loss."""
        return bool(self.options.get("label_smoothing"))

    @property
    def is_softmax_cross_entropy(self) -> bool:
        """Whether it is cross-entropy of logits without label smoothing."""
        return self.exact and self.function == "cross_entropy" and not self.smooths

    def total(self, weights: Sequence[float]) -> float:
        """Denominator of the set's loss, from the :meth:`weight` of each batch."""
        return 1.0 if self.kind == "sum" else sum(weights)

    def labelled(self, targets: Tensor) -> Tensor:
        """bool, shape of the integer ``targets``: which of them count."""
        ignored = self.ignore_index
        return torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets.long().ne(ignored)

    def weight(self, targets: Any, samples: int) -> float:
        """Denominator of a batch's loss: labels (by class weight), elements or samples. 1 for sums.

        0 for a batch without a single label.
        """
        if self.kind == "sum":
            return 1.0
        if self.kind == "batch means" or not isinstance(targets, Tensor):
            return float(samples)
        return float(self.denominators(targets).sum())

    def may_lack_labels(self, targets: Any) -> bool:
        """Whether a batch of samples with these ``targets`` could have no label that counts.

        True for unknown targets (None) where the loss has labels that do not count.
        """
        if self.function not in _BY_CLASS or self.kind != "mean":
            return False
        if not isinstance(targets, Tensor):
            return targets is None
        if targets.is_floating_point() or not targets.numel():
            return False
        # In parts: a float64 per pixel of a whole set of labelled images would not fit into memory.
        parts = targets.split(max(1, _LABELS_AT_ONCE * len(targets) // targets.numel())) if targets.dim() else [targets]
        return any(bool((self.denominators(part) == 0).any()) for part in parts)

    def values(self, output: Any, targets: Any) -> tuple[Tensor, Tensor] | None:
        """Numerator and denominator of each sample's loss, float64 ``[B]``; None where the loss has none per sample.

        The ratio of their sums is the loss of the batch; for sums, the sum of the numerators.

        Raises:
            LLPFError: the loss fails on the batch.
        """
        if not self.exact or not isinstance(output, Tensor) or not isinstance(targets, Tensor) or not targets.dim():
            return None
        if not self._fits(output, targets):
            return None
        each: Tensor = _call_loss(self.unreduced, output, targets)
        if not each.dim() or len(each) != len(targets):
            return None
        numerators = each.double().flatten(1).sum(1) if each.dim() > 1 else each.double()
        return numerators, self.denominators(targets)

    def numerators(self, output: Any, targets: Any, weight: float) -> Tensor:
        """Numerators of the losses of a batch of ``weight``, float64: ``[B]``, or ``[1]`` where it has none a sample.

        Their sum over all batches, by that of the weights, is the loss of the set. 0 for a batch without a label.
        Labels of class weight 0 count as label smoothing makes them count.
        """
        pair = self.values(output, targets)
        return batch_loss(self._loss_fn, output, targets).double().reshape(1) * weight if pair is None else pair[0]

    def _fits(self, output: Tensor, targets: Tensor) -> bool:
        """False where torch would broadcast targets to the output, which couples the samples of a batch."""
        return self.function not in _BY_ELEMENT or output.shape == targets.shape

    @functools.cached_property
    def unreduced(self) -> LossFunction:
        """The loss function with reduction "none", for a loss that is exact."""
        if isinstance(self._loss_fn, nn.Module):
            module: Any = copy.copy(self._loss_fn)
            module.reduction = "none"
            unreduced: LossFunction = module
            return unreduced
        function: Callable[..., Tensor] = self._loss_fn
        # partial(partial(f)) is one partial with the keywords of both.
        deprecated = [word for word in _DEPRECATED_REDUCTIONS if word in getattr(function, "keywords", {})]
        return functools.partial(function, reduction="none", **dict.fromkeys(deprecated))

    def denominators(self, targets: Tensor) -> Tensor:
        """Denominator of each sample's loss, float64 ``[B]``; ``[1]`` for one sample without a batch dimension."""
        if not targets.dim():
            targets = targets[None]
        count = len(targets)
        if self.function in _BY_CLASS and not targets.is_floating_point():
            labelled = self.labelled(targets)
            weight = self.options.get("weight")
            if weight is None:
                shares = labelled.double()
            else:
                classes = targets.long().clamp(0, len(weight) - 1)
                shares = torch.where(labelled, weight.to(targets.device).double()[classes], 0.0)
            return shares.flatten(1).sum(1) if shares.dim() > 1 else shares
        if self.function in _BY_SAMPLE or self.options.get("reduction") == "batchmean":
            each = 1
        elif self.function in _BY_CLASS and targets.dim() == 1:  # probabilities [C] of one sample
            return torch.ones(1, dtype=torch.float64, device=targets.device)
        elif self.function in _BY_CLASS:  # probabilities [B, C, ...]
            each = targets[0].numel() // targets.shape[1] if count else 0
        else:
            each = targets[0].numel() if count else 0
        return torch.full((count,), float(each), dtype=torch.float64, device=targets.device)


class ForwardLoss:
    """The scalar loss of ``module`` on one batch, ready for ``backward``.

    Args:
        precision: ``bfloat16`` runs forward and loss under autocast; parameters and gradients are not converted.
        compile: whether forward and loss are compiled together by ``torch.compile`` at the first batch.
    """

    def __init__(
        self, module: nn.Module, loss_fn: LossFunction, *, precision: Precision = "float32", compile: bool = False
    ) -> None:
        self._module, self._loss_fn = module, loss_fn
        self._autocast = precision == "bfloat16"
        self._compiled = torch.compile(lambda x, y: loss_fn(forward(module, x), y)) if compile else None

    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of a batch on the module's device.

        Raises:
            LLPFError: the forward or the loss fails, gives no scalar tensor, or one that depends on no parameter that
                trains.
        """
        if self._autocast:
            # No cache of converted weights: it is freed after the pass, and a captured graph would read freed memory.
            device = next(leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
            with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
                loss = self._loss(inputs, targets)
        else:
            loss = self._loss(inputs, targets)
        if not loss.requires_grad:
            raise LLPFError(NO_GRADIENT)
        return loss

    def _loss(self, inputs: Any, targets: Any) -> Tensor:
        if self._compiled is None:
            return compute_loss(self._module, self._loss_fn, inputs, targets)
        try:
            loss = _scalar(self._compiled(inputs, targets))
        except LLPFError:
            raise
        except FAILURES as error:
            raise LLPFError(
                f"the compiled model or loss fails: {first_line(error)}; set correction.compile to false"
            ) from error
        return loss


def _torch_loss(loss_fn: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the function of ``torch.nn.functional`` that ``loss_fn`` calls; None for other callables."""
    known = _MODULES.get(type(loss_fn))
    if known is not None:
        if loss_fn._forward_hooks or loss_fn._forward_pre_hooks:
            return None
        name, attributes = known
        return name, {attribute: getattr(loss_fn, attribute) for attribute in attributes}
    if isinstance(loss_fn, functools.partial):
        inner = None if loss_fn.args else _torch_loss(loss_fn.func)
        if inner is None or isinstance(loss_fn.func, nn.Module):
            return None
        options = dict(loss_fn.keywords)
        average, reduce = (options.pop(word, None) for word in _DEPRECATED_REDUCTIONS)
        if average is not None or reduce is not None:
            options["reduction"] = "none" if reduce is False else "sum" if average is False else "mean"
        return (inner[0], {**inner[1], **options}) if options.keys() <= _DEFAULTS.keys() else None
    try:
        function = _FUNCTIONS.get(loss_fn)
    except TypeError:  # a callable that cannot be hashed
        return None
    return None if function is None else (function, {})


def _torch_name(function: str, options: Mapping[str, Any]) -> str:
    texts = []
    for key in sorted(options):
        value = options[key]
        if isinstance(value, Tensor):
            values = value.detach().cpu().double()
            digest = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:12]
            texts.append(f"{key}={values.tolist() if values.numel() <= _LISTED_WEIGHTS else f'sha256 {digest}'}")
        elif value != _DEFAULTS.get(key):
            texts.append(f"{key}={value!r}")
    return f"{function}({', '.join(texts)})" if texts else function


def _name(loss_fn: Any) -> str:
    if isinstance(loss_fn, functools.partial):
        return f"partial of {_name(loss_fn.func)}"
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
