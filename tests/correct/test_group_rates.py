"""The learning-rate rule: the fused SGD and any torch optimiser scale a layer's rate by the same factor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.correct.optimizer_step import LayerRates, one_group_each
from llpf_fast.flat import FlatParameters


class Tied(nn.Module):
    """A weight used twice, and one that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.c = nn.Linear(6, 2)
        self.c.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def corrected(module: nn.Module, data, scales, fused: bool) -> FlatParameters:
    flat = FlatParameters(module)
    optimizer = None if fused else torch.optim.SGD(one_group_each(module), lr=0.1)
    rates = None if optimizer is None else LayerRates(optimizer, flat)
    batches = TensorBatches(*data, 16, seed=4)
    rule = {"threshold": 1e-9, "window": 1, "max_steps": 4, "lr": 0.1}
    correction = Correction(flat, nn.functional.cross_entropy, batches, optimizer=optimizer, **rule)
    for i, scale in enumerate(scales):
        correction.scale_lr(scale) if rates is None else rates.set(scale)
        correction.run(4 * i)
    return flat


def test_both_optimisers_take_the_same_steps(data) -> None:
    torch.manual_seed(0)
    module = Tied()
    names = FlatParameters(copy.deepcopy(module)).table.names
    assert names == ("a.weight", "a.bias", "b.bias", "c.weight", "c.bias")
    first = torch.tensor([0.0, 2.0, 0.5, 0.1, 1.0], dtype=torch.float64)
    for scales in ([first], [first, first.flip(0)], [first, None]):
        a, b = (corrected(copy.deepcopy(module), data, scales, fused) for fused in (True, False))
        torch.testing.assert_close(a.data, b.data, rtol=1e-5, atol=1e-7)
    only = corrected(copy.deepcopy(module), data, [first], fused=False).state_dict()
    before = module.state_dict()
    unchanged = {name for name in before if torch.equal(only[name], before[name])}
    assert unchanged == {"a.weight", "b.weight", "c.bias"}  # factor 0, its other name, and what does not train


def test_none_goes_back_to_the_base(data) -> None:
    module = Tied()
    optimizer = torch.optim.AdamW(one_group_each(module), lr=0.25)
    rates = LayerRates(optimizer, FlatParameters(module))
    rates.set(torch.tensor([0.5, 2.0, 1.0, 4.0, 1.0], dtype=torch.float64))
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.5, 0.25, 1.0, 0.25]
    rates.set(None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 5


def test_rates_hold_after_the_optimisers_state_was_loaded() -> None:
    """load_state_dict puts new groups into the optimiser: a resume and a rollback do that."""
    module = Tied()
    optimizer = torch.optim.SGD(one_group_each(module), lr=1.0)
    rates = LayerRates(optimizer, FlatParameters(module))
    scale = torch.arange(1.0, 6.0, dtype=torch.float64)
    rates.set(scale)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rates.set(scale * 2)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_cut_tensor_has_one_rate() -> None:
    module = nn.MultiheadAttention(8, 2)
    flat = FlatParameters(module, cut_attention=True)
    assert len(flat.table) > len(list(module.parameters()))
    optimizer = torch.optim.SGD(one_group_each(module), lr=1.0)
    factor = {name: float(i) for i, name in enumerate(dict.fromkeys(flat.parameter_names))}
    scale = torch.tensor([factor[name] for name in flat.parameter_names], dtype=torch.float64)
    LayerRates(optimizer, flat).set(scale)
    got = {
        name: group["lr"] for (name, _), group in zip(module.named_parameters(), optimizer.param_groups, strict=True)
    }
    assert got == factor


@pytest.mark.parametrize(
    "factory",
    [
        lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1),
        lambda groups: torch.optim.SGD(
            [{"params": [p for g in groups[i::2] for p in g["params"]]} for i in (0, 1)], lr=1
        ),
    ],
    ids=["one group", "two groups"],
)
def test_merged_groups_are_refused(factory) -> None:
    module = Tied()
    with pytest.raises(LLPFError, match=r"one parameter group .* for each parameter: .*correction\.lr_rule to none"):
        LayerRates(factory(list(one_group_each(module))), FlatParameters(module))
