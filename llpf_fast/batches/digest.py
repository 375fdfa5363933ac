"""sha256 of the samples in batches, in their order or in any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..flat.tensors import as_bytes
from .batch import batch_length, tensors_of


def data_digest(batches: Iterable[tuple[Any, Any]]) -> str:
    """sha256 (hex) of the samples in their order, however they are cut into batches.

    Covers dtypes, the shape of one sample and the bytes. MNIST (188 MB) takes 0.2 s.
    """
    parts: dict[str, Any] = {}
    for inputs, targets in batches:
        for side, values in (("inputs", inputs), ("targets", targets)):
            for path, leaf in pytree.tree_flatten_with_path(values)[0]:
                if isinstance(leaf, Tensor):
                    key = json.dumps([side, pytree.keystr(path), str(leaf.dtype), list(leaf.shape[1:])])
                    parts.setdefault(key, hashlib.sha256()).update(as_bytes(leaf).cpu().numpy().data)
    total = hashlib.sha256()
    for key in sorted(parts):
        total.update(key.encode() + parts[key].digest())
    return total.hexdigest()


def sample_set_digest(batches: Iterable[tuple[Any, Any]]) -> str:
    """Sum (mod 2^256, hex) of the sha256 of each sample: the same in any order. MNIST takes 0.4 s."""
    total = 0
    for inputs, targets in batches:
        count = batch_length(inputs, targets)
        rows = [
            as_bytes(leaf).view(count, -1).cpu().numpy()
            for leaf in tensors_of((inputs, targets))
            if leaf.dim() and len(leaf) == count and leaf.numel()
        ]
        for parts in zip(*rows, strict=True):
            sample = hashlib.sha256()
            for part in parts:
                sample.update(part.data)
            total += int.from_bytes(sample.digest(), "little")
    return f"{total % 2**256:064x}"
