"""Weight matching undoes a known permutation; a trace never changes the function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.analysis.permutations import trace_permutations
from llpf_fast.analysis.weight_matching import align
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model


class Residual(nn.Module):
    """Convolutions with a sum, depthwise convolution, BatchNorm, a mean and a flatten: what residual networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.hidden = nn.Linear(6 * 4 * 4, 10)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + torch.tanh(self.branch(x))
        x = F.adaptive_avg_pool2d(self.depthwise(x), 4)
        return self.out(F.gelu(self.hidden(x.view(x.size(0), -1))))


class Concatenated(nn.Module):
    """What the trace does not follow: the concatenated units must stay, those behind them are free."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)
        self.hidden, self.out = nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(torch.cat([self.left(x), self.right(x)], 1).relu())))


def unlike(module: nn.Module) -> nn.Module:
    """Every value another one, running statistics too: equal units could not be told apart."""
    generator = torch.Generator().manual_seed(5)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return module.double().eval()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "lenet5": (lambda: build_model("lenet5"), (2, 1, 28, 28), [6, 16, 84, 120]),
    "mlp": (lambda: build_model("mlp"), (2, 1, 8, 8), [64, 64]),
    "residual": (Residual, (2, 1, 8, 8), [6, 10]),
    "concatenated": (Concatenated, (2, 5), [7]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_known_permutation_is_undone_exactly(name: str) -> None:
    build, shape, sizes = CASES[name]
    torch.manual_seed(0)
    module = unlike(build()) if name != "lenet5" else build().double().eval()
    example = torch.randn(shape)
    specification = trace_permutations(module, example)
    assert sorted(group.size for group in specification.groups) == sizes
    state = {key: value.clone() for key, value in module.state_dict().items()}
    shuffled = [torch.randperm(group.size) for group in specification.groups]
    other = specification.apply(state, shuffled)
    assert any(not torch.equal(other[key], state[key]) for key in state)

    expected = module(example.double())
    module.load_state_dict(other)
    assert torch.allclose(module(example.double()), expected, rtol=1e-10, atol=1e-12)

    alignment = align(state, other, specification)
    assert all(torch.equal(alignment.state[key], state[key]) for key in state)
    assert alignment.after == 0.0 < alignment.before


def test_resnet18_is_followed_through_its_sums() -> None:
    module = build_model("resnet18").eval()
    specification = trace_permutations(module, torch.randn(1, 3, 32, 32))
    # One group a stage's stream, one inside each of the eight blocks.
    assert len(specification.groups) == 12
    example = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module(example)
        module.load_state_dict(
            specification.apply(module.state_dict(), [torch.randperm(group.size) for group in specification.groups])
        )
        assert torch.allclose(module(example), expected, atol=1e-4)


def test_alignment_brings_networks_nearer_and_never_further() -> None:
    torch.manual_seed(1)
    first, second = build_model("mlp"), build_model("mlp")
    specification = trace_permutations(first, torch.randn(1, 1, 8, 8))
    alignment = align(first.state_dict(), second.state_dict(), specification)
    assert alignment.after < alignment.before
    again = align(first.state_dict(), alignment.state, specification)
    assert again.after <= alignment.after


def test_what_cannot_be_traced_is_named() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(LLPFError, match="Depends cannot be traced"):
        trace_permutations(Depends(), torch.randn(1, 3))
    with pytest.raises(LLPFError, match="no hidden units"):
        trace_permutations(nn.Linear(3, 3), torch.randn(1, 3))


def test_values_that_are_not_finite_are_refused() -> None:
    module = build_model("mlp")
    specification = trace_permutations(module, torch.randn(1, 1, 8, 8))
    bad = {key: value.clone() for key, value in module.state_dict().items()}
    bad["fc1.weight"][0, 0] = float("nan")
    with pytest.raises(LLPFError, match=r"fc1\.weight"):
        align(module.state_dict(), bad, specification)
