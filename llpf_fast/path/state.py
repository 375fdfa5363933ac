"""State dicts: safetensors bytes, digest, and whether two of them are of one architecture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat.buffers import fixed_buffers
from ..flat.tensors import as_bytes

_SHOWN_DIFFERENCES = 3
#: Complex dtypes that safetensors does not have, by the suffix of their names in a file that stores them as pairs of
#: real values.
_AS_PAIRS = {":complex128": torch.complex128, ":complex32": torch.complex32}
_SUFFIXES = {dtype: suffix for suffix, dtype in _AS_PAIRS.items()}


def detached(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU: views of one flat buffer and tied tensors become independent."""
    resolved = tensor.detach().resolve_conj().resolve_neg()
    return resolved.to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()


def encode_state(state: Mapping[str, Tensor], metadata: str | None = None) -> bytes:
    """The bytes of a safetensors file of ``state``, with ``metadata`` under the key ``llpf_fast``.

    Equal states give equal bytes: names are sorted, and there is one key because safetensors writes several in random
    order. Complex dtypes that safetensors does not have are written as pairs of real values, which ``decode_state``
    joins.

    Raises:
        LLPFError: a tensor of a dtype or name that the file cannot hold.
    """
    if "__metadata__" in state:
        raise LLPFError("a tensor cannot be called '__metadata__' in a safetensors file; rename it")
    tensors = {}
    for name in sorted(state):
        suffix, tensor = _SUFFIXES.get(state[name].dtype, ""), detached(state[name])
        tensors[name + suffix] = torch.view_as_real(tensor) if suffix else tensor
    try:
        return safetensors.torch.save(tensors, None if metadata is None else {"llpf_fast": metadata})
    except KeyError as error:
        name = next(name for name, tensor in tensors.items() if tensor.dtype in error.args)
        raise LLPFError(
            f"tensor {name!r} is {tensors[name].dtype}, which no safetensors file holds; convert it"
        ) from error


def decode_state(data: bytes, path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file read from ``path``; LLPFError naming it when they are damaged."""
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise LLPFError(f"{path} is damaged or cut off: not a whole safetensors file") from error
    return {
        _without_suffix(name): tensor if _without_suffix(name) == name else torch.view_as_complex(tensor)
        for name, tensor in tensors.items()
    }


def _without_suffix(name: str) -> str:
    """The tensor's name, without the suffix for pairs."""
    return next((name.removesuffix(suffix) for suffix in _AS_PAIRS if name.endswith(suffix)), name)


def header(data: bytes, path: Path | str) -> dict[str, Any]:
    """The header of a safetensors file: dtype, shape and offsets of each tensor; LLPFError naming ``path``."""
    length = int.from_bytes(data[:8], "little")
    try:
        value = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise LLPFError(f"{path} is damaged or cut off: not a whole safetensors file") from error
    if not isinstance(value, dict):
        raise LLPFError(f"{path} is damaged: not a safetensors file")
    return value


def shapes(data: bytes, path: Path | str) -> dict[str, list[int]]:
    """Name to shape, from a safetensors file's header alone."""
    entries = {name: list(entry["shape"]) for name, entry in header(data, path).items() if name != "__metadata__"}
    return {
        _without_suffix(name): shape if _without_suffix(name) == name else shape[:-1] for name, shape in entries.items()
    }


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order, little-endian (on every machine torch runs on)."""
    return as_bytes(tensor).cpu().numpy().data


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes, as 64 hexadecimal digits.

    Two states have equal digests where they are bit-identical, whatever the file format, device or order of names (0.0
    and -0.0 differ, NaNs of one payload agree). About 1 ms a megabyte.
    """
    digest = hashlib.sha256(b"llpf_fast state 1\n")
    for name in sorted(state):
        tensor = state[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def check_finite(state: Mapping[str, Tensor], path: Path | str, module: nn.Module | None = None) -> None:
    """LLPFError naming ``path`` and the first tensor that holds NaN or infinity.

    With ``module``, the architecture, only parameters and running statistics are checked: a mask may be infinite.
    """
    fixed = frozenset[str]() if module is None else frozenset(fixed_buffers(module))
    for name, tensor in state.items():
        if name in fixed:
            continue
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
            continue
        # isfinite has no kernel for 8-bit floats; every one of their values is exact in float32.
        values = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            nan = int(torch.isnan(values).sum())
            bad = int((~finite).sum())
            kind = "NaN" if nan == bad else "infinite" if nan == 0 else "NaN or infinite"
            raise LLPFError(f"{path}: tensor {name!r} has {bad} {kind} of {tensor.numel()} values; train it again")


def _shape(shape: Sequence[int] | None) -> str:
    return "none" if shape is None else "[" + ",".join(str(size) for size in shape) + "]"


def differences(a: Mapping[str, Sequence[int]], b: Mapping[str, Sequence[int]], name_a: str, name_b: str) -> str:
    """A text on the first tensors (name to shape) in which ``a`` and ``b`` differ; empty where they do not."""
    names = list(a) + [name for name in b if name not in a]
    differing = [name for name in names if name not in a or name not in b or list(a[name]) != list(b[name])]
    texts = [
        f"{name_a} has {name} {_shape(a.get(name))}, {name_b} has {_shape(b.get(name))}"
        for name in differing[:_SHOWN_DIFFERENCES]
    ]
    rest = len(differing) - len(texts)
    return "; ".join(texts) + (f"; and {rest} more of {len(names)}" if rest else "")


def compare_architectures(a: Mapping[str, Any], b: Mapping[str, Any], name_a: str, name_b: str) -> None:
    """LLPFError listing the first differing names and shapes where the two states are not of one architecture.

    ``name_a`` and ``name_b`` name the states ("start", "destination", "the model"). dtypes and entries that are no
    tensors (of ``get_extra_state``) are not compared.
    """
    shapes_a, shapes_b = (
        {name: tensor.shape for name, tensor in state.items() if isinstance(tensor, Tensor)} for state in (a, b)
    )
    text = differences(shapes_a, shapes_b, name_a, name_b)
    if text:
        raise LLPFError(f"{name_a} and {name_b} are different architectures: {text}")
