"""Wrappers of a whole network are removed; networks spread over processes are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from llpf_fast import LLPFError
from llpf_fast.flat import unwrapped


class Empty(nn.Module):
    """False, like a container without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def __len__(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Uncounted(nn.Module):
    """Has no truth value, like a compiled network without a length."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def __bool__(self) -> bool:
        raise TypeError("no truth value")


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), nn.Sequential, Empty, Uncounted])
def test_every_wrapper_and_every_nesting_is_removed(make) -> None:
    net = make()
    for wrap in (
        lambda m: m,
        compiled,
        nn.DataParallel,
        AveragedModel,
        lambda m: compiled(nn.DataParallel(m)),
        lambda m: nn.DataParallel(compiled(m)),
        lambda m: compiled(nn.DataParallel(compiled(m))),
    ):
        wrapped = wrap(net)
        inner = unwrapped(wrapped)
        if wrap is AveragedModel:  # has a copy
            assert inner is wrapped.module
        else:
            assert inner is net


def test_activation_checkpoints_are_removed() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = nn.Linear(2, 2)
    assert unwrapped(compiled(checkpoint_wrapper(net))) is net


def test_compiled_parts_stay_compiled() -> None:
    net = nn.Sequential(compiled(nn.Linear(2, 2)), nn.DataParallel(nn.Linear(2, 2)))
    assert unwrapped(net) is net
    assert list(net.state_dict())[::2] == ["0._orig_mod.weight", "1.module.weight"]


def test_anything_but_a_module_is_named() -> None:
    with pytest.raises(LLPFError, match=r"the model must be a torch\.nn\.Module, got dict"):
        unwrapped({"weight": torch.ones(2)})  # type: ignore[arg-type]
    with pytest.raises(LLPFError, match=r"start must be a torch\.nn\.Module, got type"):
        unwrapped(nn.Linear, "start")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this one process."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    patch = pytest.MonkeyPatch()
    patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = Path(tmp_path_factory.mktemp("group")) / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    patch.undo()


@pytest.mark.usefixtures("alone")
def test_what_is_spread_over_processes_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    cpu = torch.device("cpu")
    mesh = init_device_mesh("cpu", (1,))
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fully_shard(part[1], mesh=mesh)
    tensor = nn.Linear(2, 2)
    tensor.weight = nn.Parameter(distribute_tensor(tensor.weight.detach(), mesh))
    cases = {
        r"the model is a DistributedDataParallel, ": ddp,
        r"the model is a DistributedDataParallel,": compiled(ddp),
        r"'0' of the model is a DistributedDataParallel, ": nn.Sequential(ddp),
        r"the model is a FullyShardedDataParallel: ": FullyShardedDataParallel(nn.Linear(2, 2), device_id=cpu),
        r"'1' of the model is an FSDPModule: ": part,
        r"'weight' of the model is a DTensor, ": tensor,
    }
    for message, module in cases.items():
        with pytest.raises(LLPFError, match=message + ".*pass the module inside, whole, in one process"):
            unwrapped(module)
    assert unwrapped(ddp.module) is ddp.module
