"""One batch: split into inputs and targets, its tensors, its length, its move to a device."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from ..errors import LLPFError
from .forward import shape_of

#: Keys under which a batch that is a mapping has its targets (``labels``: transformers).
TARGET_NAMES = ("labels", "label", "targets", "target")

#: Integer dtypes of targets that torch's losses refuse or misread.
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)


def split_batch(batch: Any, what: str = "data", *, warn: bool = True) -> tuple[Any, Any]:
    """(inputs, targets) of one batch, arrays as tensors.

    A batch is a pair; a triple, whose third part is not used; or a mapping, of which ``labels`` (``label``,
    ``targets``, ``target``) are the targets and the rest the inputs by name. A named tuple or a dataclass counts as a
    mapping where a field has one of those names; a named tuple of inputs and targets is a pair.

    Args:
        what: "training data", "test data": for messages.
        warn: whether a third part gives a warning.

    Raises:
        LLPFError: another form.
    """
    batch = by_name(batch)
    if isinstance(batch, Mapping):
        names = [name for name in TARGET_NAMES if name in batch]
        rest = {str(name): value for name, value in batch.items() if name not in names}
        if len(names) != 1 or not rest:
            problem = f"has {' and '.join(names)}" if names else f"has {', '.join(map(str, batch)) or 'nothing'}"
            raise LLPFError(
                f"a batch of the {what} that is a mapping needs its targets under one of {', '.join(TARGET_NAMES)}, "
                f"and inputs beside them; it {problem}"
            )
        return _with_tensors(rest, batch[names[0]], what)
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        if len(batch) > 2 and warn:
            warnings.warn(
                f"batches of the {what} have {len(batch)} parts: the first is taken for the inputs, the second for the "
                "targets; the rest is not used",
                stacklevel=3,
            )
        return _with_tensors(batch[0], batch[1], what)
    raise LLPFError(
        f"a batch of the {what} must be a pair (inputs, targets) or a mapping with {TARGET_NAMES[0]!r}; "
        f"got {shape_of(batch)}"
    )


def by_name(batch: Any) -> Any:
    """A named tuple or dataclass with a field of :data:`TARGET_NAMES` as a mapping; anything else unchanged."""
    if isinstance(batch, tuple):
        names = getattr(batch, "_fields", ())
        named = [name for name in names if name in TARGET_NAMES]
        # With targets second of two fields, position and name agree: a pair.
        return dict(zip(names, batch, strict=True)) if named and names[1:] != tuple(named) else batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return values if any(name in TARGET_NAMES for name in values) else batch
    return batch


def _with_tensors(inputs: Any, targets: Any, what: str) -> tuple[Any, Any]:
    batch = as_tensors(inputs, what), as_tensors(targets, what)
    for side, values in zip(("inputs", "targets"), batch, strict=True):
        if not tensors_of(values):
            raise LLPFError(
                f"the {side} of a batch of the {what} hold no tensor or array: {shape_of(values)}; give tensors, or a "
                "tuple or mapping of them"
            )
    return batch


def batch_length(inputs: Any, targets: Any) -> int:
    """Number of samples in a batch: the most frequent length of its tensors, of the first target in a tie.

    Labels of different length laid end to end (CTC), or a list of boxes for each image, are longer or shorter than
    their batch. 0 where all tensors are empty; 1 where all are single numbers.
    """
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    lengths = [len(leaf) for leaf in (*tensors_of(targets), *tensors_of(inputs)) if leaf.dim()]
    frequency = collections.Counter(length for length in lengths if length)
    return frequency.most_common(1)[0][0] if frequency else 0 if lengths else 1


def move_batch(inputs: Any, targets: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The batch on ``device``: floating values as ``dtype``, integer targets as int64, which losses take.

    Complex values become complex of the same width. The batch sizes of packed sequences stay on the CPU.
    """

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            packed: Any = leaf
            return packed.to(device, dtype if packed.data.is_floating_point() else packed.data.dtype)
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_complex():
            return leaf.to(device, dtype.to_complex())
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    def label(leaf: Any) -> Any:
        narrow = isinstance(leaf, Tensor) and leaf.dtype in _NARROW
        return leaf.to(device, torch.int64) if narrow else cast(leaf)

    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return cast(inputs), label(targets)
    return pytree.tree_map(cast, inputs, is_leaf=_is_packed), pytree.tree_map(label, targets, is_leaf=_is_packed)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a pytree, in its order."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def first_tensor(value: Any) -> Tensor:
    """The first tensor in a pytree; of targets, the one by whose classes a subset is stratified."""
    return tensors_of(value)[0]


def is_array(value: Any) -> bool:
    """Whether ``value`` is a tensor, a NumPy array, or what NumPy reads without a loop over elements (pandas, JAX)."""
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, type))


def with_dicts(value: Any) -> Any:
    """``value`` with every mapping in it as a dict: pytrees know no other (``UserDict``, classes derived from dict)."""
    if isinstance(value, Mapping):
        return {key: with_dicts(item) for key, item in value.items()}
    return pytree.tree_map(lambda leaf: with_dicts(leaf) if isinstance(leaf, Mapping) else leaf, value)


def as_tensors(value: Any, what: str) -> Any:
    """``value`` with its arrays as detached tensors; leaves that are neither stay (a network may take a flag).

    Raises:
        LLPFError: a nested, sparse, meta or masked array; one of a dtype that torch lacks; a dataclass of arrays.
    """
    if isinstance(value, Tensor):
        return _as_tensor(value, what)

    def converted(leaf: Any) -> Any:
        if is_array(leaf):
            return _as_tensor(leaf, what)
        if dataclasses.is_dataclass(leaf) and any(is_array(getattr(leaf, f.name)) for f in dataclasses.fields(leaf)):
            raise LLPFError(
                f"the {what} holds a {type(leaf).__name__}, a dataclass of arrays; make it a tuple or a mapping"
            )
        return leaf

    return pytree.tree_map(converted, with_dicts(value))


def _as_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_nested:
            raise LLPFError(f"the {what} holds a nested tensor; pad it (.to_padded_tensor(0.0)), and pass the lengths")
        if value.layout is not torch.strided:
            raise LLPFError(f"the {what} holds a sparse tensor; pass it dense (.to_dense())")
        if value.is_meta:
            raise LLPFError(f"the {what} holds a tensor on the device meta, which has no values")
        return value.detach()
    if numpy.ma.isMaskedArray(value) and numpy.ma.is_masked(value):
        raise LLPFError(
            f"the {what} holds a masked array, and tensors have no mask: pass .filled(VALUE) (ignore_index), or the "
            "mask as a second array"
        )
    try:
        array = numpy.asarray(value)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that may not be written to: nothing here writes
            return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise LLPFError(f"the {what} holds an array of {kind}, which torch has no tensors for") from error
