"""``FlatParameters.move_to`` moves values, gradients and views; unfit memory is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.flat import FlatParameters


def test_values_gradients_and_views_move() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    module[1].bias.requires_grad_(False)
    parameters = list(module.parameters())
    flat = FlatParameters(module)
    module(torch.randn(4, 3)).sum().backward()
    flat.ensure_gradients()
    values, gradients = flat.data.clone(), flat.grad.clone()
    rows = torch.full((2, 3, flat.table.numel), torch.nan)
    flat.move_to(rows[0, 1], rows[1, 1])
    assert flat.data.data_ptr() == rows[0, 1].data_ptr()
    assert torch.equal(rows[0, 1], values)
    assert torch.equal(rows[1, 1], gradients)
    assert list(module.parameters()) == parameters, "optimizers refer to these objects"
    rows[0, 1] = 0.5
    assert all(bool((parameter == 0.5).all()) for parameter in parameters)
    flat.zero_grad()
    module(torch.ones(1, 3)).sum().backward()
    flat.ensure_gradients()
    assert flat.grad.data_ptr() == rows[1, 1].data_ptr()
    assert torch.equal(flat.views(rows[1, 1])["0.weight"], module[0].weight.grad)
    assert bool(rows[:, [0, 2]].isnan().all()), "the neighbours are left alone"


@pytest.mark.parametrize(
    "memory",
    [torch.zeros(7), torch.zeros(32, dtype=torch.float64), torch.zeros(64)[::2], torch.zeros(2, 16)],
    ids=["size", "dtype", "holes", "shape"],
)
def test_memory_that_does_not_fit_is_refused(memory: torch.Tensor) -> None:
    flat = FlatParameters(nn.Linear(3, 5))
    assert flat.table.numel == 32
    before = flat.data
    with pytest.raises(LLPFError, match="expected contiguous memory of 32"):
        flat.move_to(memory, torch.zeros(32))
    assert flat.data is before
