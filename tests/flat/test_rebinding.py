"""A copy computes with the parameters of the copy, wherever functions refer to the network."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llpf_fast.flat import copied


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(4))

    def linear(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ByLambda(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = lambda x: self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)


class ByDefault(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = lambda x, layer=self.b: layer(torch.tanh(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)


class ByList(Net):
    """Functions in a dictionary and a list, one that calls another, one of a single parameter."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.a.weight
        first = lambda x: x @ weight.t()
        self.steps = {
            "all": [lambda x: torch.tanh(first(x)) * self.scale, functools.partial(lambda last, x: last(x), self.b)]
        }

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps["all"]:
            x = step(x)
        return x


class ByHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda module, inputs, output: output + self.b.bias.sum())
        self.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] * self.scale,))


class ByWeakReference(Net):
    def __init__(self) -> None:
        super().__init__()
        self.whole = weakref.ref(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole()(torch.tanh(self.a(x)))


@pytest.mark.parametrize("make", [Net, ByLambda, ByDefault, ByList, ByHook, ByWeakReference])
def test_copy_is_independent_of_the_original(make: Callable[[], Net]) -> None:
    original, other, x = make(), make(), torch.randn(5, 3)
    twin = copied(original)
    expected = original(x)
    assert torch.equal(twin(x), expected)
    twin.load_state_dict({name: value + 1 for name, value in other.state_dict().items()})
    # Read where nothing was copied: what PyTorch gives for these values.
    original_was = {name: value.clone() for name, value in original.state_dict().items()}
    original.load_state_dict(twin.state_dict())
    assert torch.equal(twin(x), original(x))
    original.load_state_dict(original_was)
    assert torch.equal(original(x), expected)
    assert not torch.equal(twin(x), expected)
    twin(x).sum().backward()
    assert all(parameter.grad is None for parameter in original.parameters())


def test_what_refers_to_nothing_of_the_network_stays_the_same_object() -> None:
    outputs: list[Tensor] = []
    original = Net()

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)

    original.a.register_forward_hook(record)
    original.extra = record
    twin = copied(original)
    assert twin.extra is record
    twin(torch.randn(2, 3))
    assert len(outputs) == 1


def test_a_function_that_calls_itself_is_copied() -> None:
    original = Net()

    def again(x: Tensor, left: int) -> Tensor:
        return original.a(x) if left == 0 else again(x, left - 1)

    original.again = again
    twin = copied(original)
    assert torch.equal(twin.again(torch.ones(1, 3), 2), original.again(torch.ones(1, 3), 2))
