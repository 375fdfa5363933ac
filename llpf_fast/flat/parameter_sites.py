"""Where a module has each of its parameters, which parameters cannot be flattened, and which names are tied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ..errors import LLPFError

#: Storage dtypes of the ops.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ParameterSite:
    """One attribute that is a parameter. A tied parameter has several sites."""

    #: ``state_dict`` key.
    name: str
    owner: nn.Module
    #: Attribute of ``owner``.
    attribute: str
    parameter: nn.Parameter


def parameter_sites(module: nn.Module) -> Iterator[ParameterSite]:
    """Every site of every parameter, in the order of ``module.named_parameters(remove_duplicate=False)``."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                yield ParameterSite(f"{prefix}.{attribute}" if prefix else attribute, owner, attribute, parameter)


def owning_layer(site: ParameterSite) -> tuple[str, str]:
    """Path of the layer that uses the parameter, and the parameter's name in that layer.

    LAYER.parametrizations.TENSOR.original0 belongs to TENSOR of LAYER; every other parameter to its owner.
    """
    path, attribute = site.name.rpartition(".")[0], site.attribute
    if isinstance(site.owner, ParametrizationList):
        path, _, attribute = path.rpartition(".")
        path = path.removesuffix("parametrizations").removesuffix(".")
    return path, attribute


def bias_weights(module: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """The weight of every bias: of the same submodule and a matching name (``weight_ih_l0``, ``bias_ih_l0``)."""
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for attribute, weight in owner._parameters.items():
            bias = owner._parameters.get(attribute.replace("weight", "bias"))
            if weight is not None and weight.numel() and bias is not None and bias is not weight:
                weights.setdefault(bias, weight)
    return weights


def check_flattenable(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse a module whose parameters cannot become views of one buffer.

    Args:
        parameters: of the module, by first name.

    Raises:
        LLPFError: a lazy, integer, complex, sparse, subclassed or inference tensor; two dtypes or devices; two
            parameters that share memory; a parameter that is a buffer too; a TorchScript program inside; a state-dict
            hook that hides a parameter. The message names them.
    """
    for path, each in module.named_modules():
        if isinstance(each, torch.jit.ScriptModule):
            raise LLPFError(
                f"{f'layer {path!r}' if path else 'the module'} is a TorchScript program: use the torch.nn.Module that "
                "it was made from"
            )
    by_identity = {id(parameter): name for name, parameter in parameters.items()}
    for name, buffer in module.named_buffers():
        if id(buffer) in by_identity:
            raise LLPFError(
                f"buffer {name!r} is the parameter {by_identity[id(buffer)]!r} itself: register one of the two, or "
                "make the buffer a copy"
            )
    for name, tensor in (*parameters.items(), *module.named_buffers()):
        if is_lazy(tensor):
            raise LLPFError(f"{name!r} is lazy and has no shape yet: run one batch through the module first")
    for name, parameter in parameters.items():
        data = parameter.data
        if type(data) is not Tensor or data.layout is not torch.strided:
            raise LLPFError(
                f"parameter {name!r} is a {type(data).__name__} of layout {data.layout}: only ordinary dense tensors "
                "can be flattened"
            )
        if data.dtype not in DTYPES:
            known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise LLPFError(f"parameter {name!r} is {data.dtype}: convert it to one of {known}")
        if not _counts_versions(parameter):
            raise LLPFError(
                f"parameter {name!r} was made under torch.inference_mode() and can never be trained: make it outside"
            )
    first, reference = next(iter(parameters.items()))
    for name, parameter in parameters.items():
        if (parameter.dtype, parameter.device) != (reference.dtype, reference.device):
            raise LLPFError(
                f"parameters {first!r} ({reference.dtype} on {reference.device}) and {name!r} ({parameter.dtype} on "
                f"{parameter.device}) differ: bring the module to one dtype and device with module.to()"
            )
    if reference.device.type != "meta":
        _check_memory(parameters)
    keys = module.state_dict(keep_vars=True)
    for name, parameter in parameters.items():
        if keys.get(name) is not parameter:
            raise LLPFError(
                f"parameter {name!r} is not in module.state_dict() under its name: remove the state-dict hook "
                "that renames, converts or drops it"
            )


def dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides where it has no holes in memory, else strides of the same order without holes."""
    return torch.empty_like(tensor, device="meta").stride()


def _counts_versions(parameter: nn.Parameter) -> bool:
    """False for a parameter made in inference mode; True for one that was only given such memory later."""
    try:
        return parameter._version >= 0
    except RuntimeError:
        return False


def _check_memory(parameters: Mapping[str, nn.Parameter]) -> None:
    by_storage: dict[int, list[tuple[int, int, str, Tensor]]] = defaultdict(list)
    for name, parameter in parameters.items():
        start = int(parameter.storage_offset())
        extent = 1 + sum((n - 1) * stride for n, stride in zip(parameter.shape, parameter.stride(), strict=True))
        by_storage[parameter.untyped_storage().data_ptr()].append((start, start + extent, name, parameter))
    for members in by_storage.values():
        members.sort(key=lambda member: member[:2])
        disjoint = all(left[1] <= right[0] for left, right in pairwise(members))
        if not disjoint or any(dense_stride(tensor) != tensor.stride() for *_, tensor in members):
            _check_elements(members)


def _check_elements(members: Sequence[tuple[int, int, str, Tensor]]) -> None:
    """Exact but slow (one int64 per element of the storage): only for ranges that overlap or have holes."""
    end = max(member[1] for member in members)
    position = torch.arange(end)
    owner = torch.full((end,), -1)
    for i, (_, _, name, tensor) in enumerate(members):
        elements = position.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten()
        if elements.unique().numel() < elements.numel():
            raise LLPFError(
                f"parameter {name!r} has elements that share memory (an expanded tensor): make it .contiguous()"
            )
        other = int(owner[elements].max())
        if other >= 0:
            raise LLPFError(
                f"parameters {members[other][2]!r} and {name!r} share memory but are two Parameter objects: tie them "
                "by assigning the same Parameter, or clone one"
            )
        owner[elements] = i


def ties(module: nn.Module) -> list[tuple[str, ...]]:
    """Groups of two or more ``state_dict`` names of one parameter or buffer object, in the order of the module.

    They come from tied weights (``head.weight = embedding.weight``) and from modules registered more than once.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]
