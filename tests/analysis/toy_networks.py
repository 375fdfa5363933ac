"""Small networks whose landscapes are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llpf_fast.analysis import Problem


class Product(nn.Module):
    """Output a * b whatever the input; with ``half_square`` against 1 its loss is (ab - 1)^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.ones_like(x)))


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean() / 2


def product_state(a: float, b: float) -> dict[str, Tensor]:
    return {
        "first.weight": torch.tensor([[a]], dtype=torch.float64),
        "second.weight": torch.tensor([[b]], dtype=torch.float64),
    }


def product_problem(**options: object) -> Problem:
    data = (torch.zeros(4, 1), torch.ones(4, 1))
    return Problem(Product().double(), half_square, train=data, **options)


class Tanh(nn.Module):
    def __init__(self, seed: int = 0, hidden: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Linear(6, hidden)
            self.head = nn.Linear(hidden, 3)
            for parameter in self.parameters():
                parameter.data *= scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def random_classes(count: int = 40, inputs: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, inputs, generator=generator),
        torch.randint(classes, (count,), generator=generator),
    )
