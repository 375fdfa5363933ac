"""An independent copy, or one line that names what cannot be copied and what to do."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from llpf_fast import LLPFError
from llpf_fast.flat import copied


def refused(module: nn.Module, what: str = "the model") -> str:
    with pytest.raises(LLPFError) as caught:
        copied(module, what)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Keeps(nn.Module):
    """Stores a result of its last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.output = self.layer(x)
        return self.output


def old(name: str, module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(nn.utils, name)(module)


def test_a_copy_shares_nothing() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].bias = nn.Parameter(torch.randn(3, 3))
    net[0].bias = nn.Parameter(torch.randn(3))
    net[2].requires_grad_(False)
    twin = copied(net)
    mine, theirs = net.state_dict(), twin.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name] is not theirs[name] for name in mine)
    assert not {t.data_ptr() for t in mine.values()} & {t.data_ptr() for t in theirs.values()}
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("passes", ["none", "training", "without gradient"])
def test_old_weight_norm_is_named_whether_or_not_deepcopy_succeeds(passes: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), old("weight_norm", nn.Linear(3, 2)))
    if passes != "none":
        with torch.set_grad_enabled(passes == "training"):
            net(torch.randn(2, 3))
    message = refused(net)
    assert "layer '1' (Linear) of the model uses the old torch.nn.utils.weight_norm ('weight')" in message
    assert "torch.nn.utils.remove_weight_norm" in message
    assert "torch.nn.utils.parametrizations.weight_norm" in message
    nn.utils.remove_weight_norm(net[1])
    copied(net)


def test_old_spectral_norm_is_named() -> None:
    message = refused(nn.Sequential(old("spectral_norm", nn.Linear(3, 2))), "start")
    assert "layer '0' (Linear) of start uses the old torch.nn.utils.spectral_norm ('weight')" in message
    copied(nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 2))))


@pytest.mark.parametrize("times", [1, 2])
def test_pruned_layers_are_named(times: int) -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    for _ in range(times):
        prune.l1_unstructured(net[0], "bias", amount=1)
    message = refused(net)
    assert "layer '0' (Linear) of the model is pruned ('bias')" in message
    assert "torch.nn.utils.prune.remove(layer, 'bias')" in message
    prune.remove(net[0], "bias")
    copied(net)


def test_a_result_in_an_attribute_is_named() -> None:
    net = nn.Sequential(Keeps())
    copied(net)
    net(torch.randn(2, 3))
    message = refused(net)
    assert (
        "layer '0' (Keeps) of the model cannot be copied because of its attribute 'output', the result of a pass"
        in message
    )
    assert "output.detach()" in message
    net[0].output = None
    copied(net)


def test_locks_and_handles_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    net[1][0].guard = threading.Lock()
    assert "layer '1.0' (Linear) of the model cannot be copied because of its attribute 'guard', a lock" in refused(net)
    del net[1][0].guard
    net.log = open(__file__)  # noqa: SIM115
    assert "the model (Sequential) cannot be copied because of its attribute 'log', a TextIOWrapper" in refused(net)
    net.log.close()


def test_a_parameter_that_is_a_result_is_named() -> None:
    net = nn.Linear(2, 2)
    net.scale = torch.ones(2, requires_grad=True) * 2
    assert "attribute 'scale', the result of a pass" in refused(net)


def test_classes_that_refuse_or_share_are_named() -> None:
    class Refuses(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("one\nonly")

    class Shares(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return self

    class Other(nn.Linear):
        def __deepcopy__(self, memo: object) -> int:
            return 3

    assert "cannot be copied (RuntimeError: one only)" in refused(Refuses(2, 2))
    assert "the same parameter '0.weight'" in refused(nn.Sequential(Shares(2, 2)))
    assert "gives no module" in refused(Other(2, 2))


def test_a_forward_that_refers_to_the_network_is_named() -> None:
    """deepcopy does not copy functions: the copy's forward would read the original's parameters."""
    net = nn.Sequential(nn.Linear(2, 2))
    net.forward = lambda x: net[0](x)  # type: ignore[method-assign]
    assert "the model (Sequential) has a forward function on the instance" in refused(net)
    weight = net[0].weight
    net.forward = lambda x, w=weight: x @ w  # type: ignore[method-assign]
    assert "define forward in the class" in refused(net)
    factor = 2.0
    net.forward = lambda x: x * factor  # type: ignore[method-assign]
    copied(net)
