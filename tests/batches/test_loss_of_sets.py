"""The loss of a set is that of one call of the user's loss on all of it, in torch and float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.batches.loss import LossReduction, chosen_loss
from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluator

CLASSES = 4


def _weights(generator: torch.Generator) -> Tensor:
    """One of the classes weighs nothing, in a third of the cases."""
    weights = torch.rand(CLASSES, generator=generator, dtype=torch.float64) * 50 + 0.1
    weights[3] *= float(torch.rand((), generator=generator)) > 0.33
    return weights


def _class_indices(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(CLASSES, shape, generator=generator)


def _values(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


#: name -> (loss of a generator, reduction and ignored label) and the kind of its targets.
LOSSES: dict[str, tuple[Callable[[torch.Generator, str], Any], str]] = {
    "cross_entropy": (lambda g, r: nn.CrossEntropyLoss(reduction=r), "class"),
    "weighted": (lambda g, r: nn.CrossEntropyLoss(weight=_weights(g), reduction=r), "class"),
    "ignoring": (lambda g, r: functools.partial(F.cross_entropy, ignore_index=2, reduction=r), "class"),
    "weighted, ignoring, smoothed": (
        lambda g, r: nn.CrossEntropyLoss(weight=_weights(g), ignore_index=1, label_smoothing=0.1, reduction=r),
        "class",
    ),
    "dense, ignoring": (lambda g, r: nn.CrossEntropyLoss(weight=_weights(g), ignore_index=255, reduction=r), "dense"),
    "probabilities": (
        lambda g, r: nn.CrossEntropyLoss(weight=_weights(g), label_smoothing=0.2, reduction=r),
        "simplex",
    ),
    "nll": (lambda g, r: nn.NLLLoss(weight=_weights(g), ignore_index=0, reduction=r), "class"),
    "bce": (lambda g, r: nn.BCEWithLogitsLoss(pos_weight=_weights(g), weight=_weights(g), reduction=r), "unit"),
    "mse": (lambda g, r: functools.partial(F.mse_loss, reduction=r), "real"),
    "l1": (lambda g, r: nn.L1Loss(reduction=r), "real"),
    "smooth l1": (lambda g, r: nn.SmoothL1Loss(beta=0.3, reduction=r), "real"),
    "huber": (lambda g, r: nn.HuberLoss(delta=0.3, reduction=r), "real"),
    "kl": (lambda g, r: nn.KLDivLoss(reduction=r), "simplex"),
    "kl by batch": (lambda g, r: nn.KLDivLoss(reduction="batchmean" if r == "mean" else r), "simplex"),
    "poisson": (lambda g, r: nn.PoissonNLLLoss(reduction=r), "unit"),
    "soft margin": (lambda g, r: nn.SoftMarginLoss(reduction=r), "sign"),
    "hinge embedding": (lambda g, r: nn.HingeEmbeddingLoss(reduction=r), "sign"),
    "multi margin": (lambda g, r: nn.MultiMarginLoss(weight=_weights(g), reduction=r), "class"),
    "multi label": (lambda g, r: nn.MultiLabelSoftMarginLoss(weight=_weights(g), reduction=r), "unit"),
    "multi label margin": (lambda g, r: nn.MultiLabelMarginLoss(reduction=r), "labels"),
}


def _targets(kind: str, count: int, g: torch.Generator) -> Tensor:
    if kind == "class":
        return _class_indices(g, (count,))
    if kind == "dense":
        dense = _class_indices(g, (count, 5))
        # Later samples have fewer labels, and the first ten none at all.
        dense[torch.rand(count, 5, generator=g) < torch.linspace(0, 0.95, count)[:, None]] = 255
        dense[:10] = 255
        return dense
    if kind == "simplex":
        return _values(g, (count, CLASSES)).softmax(1)
    if kind == "unit":
        return torch.rand(count, CLASSES, generator=g, dtype=torch.float64)
    if kind == "sign":
        return _class_indices(g, (count, CLASSES)).remainder(2).double() * 2 - 1
    if kind == "labels":
        return torch.argsort(torch.rand(count, CLASSES, generator=g), 1).where(
            torch.arange(CLASSES) < _class_indices(g, (count, 1)), torch.tensor(-1)
        )
    return _values(g, (count, CLASSES))


class Dense(nn.Module):
    """Logits ``[B, C, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, CLASSES * 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).unflatten(1, (CLASSES, 5))


def _network(kind: str, name: str, g: torch.Generator) -> nn.Module:
    module: nn.Module = Dense() if kind == "dense" else nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES))
    if name == "nll" or name.startswith("kl"):
        module.append(nn.LogSoftmax(1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = _values(g, tuple(parameter.shape)) * 2
    return module


@given(
    name=st.sampled_from(sorted(LOSSES)),
    reduction=st.sampled_from(["mean", "sum"]),
    count=st.integers(12, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**31),
    as_loader=st.booleans(),
)
def test_any_loss_of_torchs_is_one_call_on_the_whole_set(name, reduction, count, batch_size, seed, as_loader) -> None:
    g = torch.Generator().manual_seed(seed)
    make, kind = LOSSES[name]
    loss = make(g, reduction)
    module = _network(kind, name, g)
    inputs, targets = _values(g, (count, 6)), _targets(kind, count, g)
    with torch.no_grad():
        want = float(loss(module(inputs), targets))
    order = torch.randperm(count, generator=g) if seed % 2 else targets.reshape(count, -1).sum(1).argsort()
    parts = zip(inputs[order].split(batch_size), targets[order].split(batch_size), strict=True)
    given_data = (list(parts), None) if as_loader else (inputs[order], targets[order])
    if math.isnan(want):
        with pytest.raises(LLPFError, match="no sample has a label"):
            Evaluator(module, loss, *given_data, batch_size=batch_size)
        return
    got = Evaluator(module, loss, *given_data, batch_size=batch_size)(module.state_dict())
    assert got.reduction == "exact"
    assert got.loss == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert got.not_finite == 0


@pytest.mark.parametrize("name", ["cross_entropy", "weighted, ignoring, smoothed", "dense, ignoring", "mse", "bce"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_standard_errors_agree_with_a_bootstrap(name, reduction) -> None:
    g = torch.Generator().manual_seed(5)
    make, kind = LOSSES[name]
    loss, count = make(g, reduction), 600
    module = _network(kind, name, g)
    inputs, targets = _values(g, (count, 6)), _targets(kind, count, g)
    got = Evaluator(module, loss, inputs, targets, batch_size=50)(module.state_dict())
    with torch.no_grad():
        output = module(inputs)
        draws = torch.randint(count, (2000, count), generator=g)
        means = torch.stack([loss(output[i], targets[i]) for i in draws])
    assert got.standard_error == pytest.approx(float(means.std()), rel=0.1)


def test_class_weights_do_not_depend_on_the_order() -> None:
    """A rare, heavy class at the end of the set: the mean of batch means would be a tenth of the loss."""
    g = torch.Generator().manual_seed(0)
    inputs = _values(g, (2000, 6))
    targets = torch.zeros(2000, dtype=torch.int64)
    targets[-100:] = 3
    module = _network("class", "", g)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1, 1, 50], dtype=torch.float64))
    want = float(loss(module(inputs), targets))
    means = [float(loss(module(x), y)) for x, y in zip(inputs.split(125), targets.split(125), strict=True)]
    assert sum(means) / len(means) != pytest.approx(want, rel=0.05)
    for order in (torch.arange(2000), torch.randperm(2000, generator=g)):
        got = Evaluator(module, loss, inputs[order], targets[order])(module.state_dict())
        assert got.loss == pytest.approx(want, rel=1e-12)


def test_another_callable_is_evaluated_on_the_loaders_batches() -> None:
    """Negatives within the batch: the value is the mean over the batches of the loader, weighted by their sizes."""
    g = torch.Generator().manual_seed(1)
    batches = [(_values(g, (n, 6)), torch.arange(n)) for n in (16, 16, 9)]
    module = _network("class", "", g)

    def contrast(output: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    got = Evaluator(module, contrast, batches)(module.state_dict())
    want = sum(float(contrast(module(x), y)) * len(y) for x, y in batches) / 41
    assert (got.loss, got.reduction) == (pytest.approx(want, rel=1e-12), "batch means")
    joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    evaluator = Evaluator(module, contrast, *joined, batch_size=16)
    loss = evaluator(module.state_dict()).loss
    assert evaluator.in_another_order(module.state_dict()) != pytest.approx(loss, rel=1e-3)


def test_an_order_that_does_not_matter_is_recognised() -> None:
    g = torch.Generator().manual_seed(1)
    module = _network("class", "", g)
    evaluator = Evaluator(module, F.cross_entropy, _values(g, (100, 6)), _class_indices(g, (100,)), batch_size=16)
    loss = evaluator(module.state_dict()).loss
    assert evaluator.in_another_order(module.state_dict()) == pytest.approx(loss, rel=1e-12)


def test_accuracy_counts_labelled_samples_only() -> None:
    module = nn.Identity()
    output, targets = torch.eye(4)[[0, 1, 2, 3, 3]], torch.tensor([0, 1, -100, 0, -100])
    got = Evaluator(nn.Sequential(module), F.cross_entropy, output, targets)({})
    assert got.accuracy == pytest.approx(2 / 3)


def test_no_label_at_all_is_refused() -> None:
    with pytest.raises(LLPFError, match="no sample has a label"):
        Evaluator(nn.Linear(3, 2), F.cross_entropy, torch.zeros(4, 3), torch.full((4,), -100))


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64)),
        (torch.zeros(8, 1), torch.zeros(8, 1)),
        (torch.zeros(8, 3), torch.zeros(8, 3)),
        (torch.zeros(8), torch.zeros(8, dtype=torch.int64)),
        (torch.zeros(8, 3), {"label": torch.zeros(8, dtype=torch.int64)}),
        ((torch.zeros(8, 3),), torch.zeros(8, dtype=torch.int64)),
    ],
)
def test_no_loss_is_chosen_where_it_is_no_classification(output, targets) -> None:
    with pytest.raises(LLPFError, match=r"no loss is given.*no classification.*mse_loss") as caught:
        chosen_loss(None, output, targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("targets", [torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.uint8)])
def test_cross_entropy_for_a_classification(targets) -> None:
    assert chosen_loss(None, torch.zeros(8, 2), targets) is F.cross_entropy
    assert chosen_loss(None, torch.zeros(8, 2, 5), targets[:, None].expand(8, 5)) is F.cross_entropy


def test_losses_have_different_names() -> None:
    names = [
        LossReduction(loss).name
        for loss in (
            F.cross_entropy,
            nn.CrossEntropyLoss(),
            functools.partial(F.cross_entropy, label_smoothing=0.1),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
            nn.CrossEntropyLoss(weight=torch.ones(100)),
            nn.MSELoss(reduction="sum"),
        )
    ]
    assert names[0] == names[1] == "cross_entropy"
    assert names[2] == names[3] == "cross_entropy(label_smoothing=0.1)"
    assert names[4] == "cross_entropy(weight=[1.0, 2.0])"
    assert names[5].startswith("cross_entropy(weight=sha256 ")
    assert names[6] == "mse_loss(reduction='sum')"


def test_classes_derived_from_torchs_losses_are_other_losses() -> None:
    class Mine(nn.CrossEntropyLoss):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 3 * super().forward(output, target)

    assert LossReduction(Mine()).kind == "batch means"
    hooked = nn.MSELoss()
    hooked.register_forward_hook(lambda *_: torch.zeros(()))
    assert LossReduction(hooked).kind == "batch means"


def test_targets_that_torch_broadcasts_have_no_exact_mean() -> None:
    """[B, 1] against [B] is [B, B] to torch: the pairs of each batch, not those of the set."""
    g = torch.Generator().manual_seed(0)
    module = nn.Linear(3, 1).double()
    with pytest.warns(UserWarning, match="target size"):
        got = Evaluator(module, F.mse_loss, _values(g, (10, 3)), _values(g, (10,)))(module.state_dict())
    assert got.reduction == "batch means"


def test_masks_of_bytes_are_targets() -> None:
    """torch takes uint8 targets for flat classes only; segmentation masks are stored so."""
    g = torch.Generator().manual_seed(0)
    module = Dense().double()
    inputs, targets = _values(g, (20, 6)), _targets("dense", 20, g)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    for form in ((inputs, targets.to(torch.uint8)), [(inputs, targets.to(torch.uint8))]):
        got = Evaluator(module, loss, form)(module.state_dict())
        assert got.loss == pytest.approx(float(loss(module(inputs).detach(), targets)), rel=1e-12)
