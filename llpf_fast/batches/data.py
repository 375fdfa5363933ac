"""The forms of data that a caller may give: tensors in memory, items of a ``Dataset``, or ready-made batches."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ..errors import LLPFError, describe_error, first_line
from .batch import (
    TARGET_NAMES,
    as_tensors,
    batch_length,
    by_name,
    first_tensor,
    is_array,
    move_batch,
    split_batch,
    tensors_of,
    with_dicts,
)
from .digest import data_digest, sample_set_digest

#: Samples after which data without a length count as endless, where no limit is given.
STREAM_LIMIT = 100_000
#: Items of a ``Dataset`` that are read and stacked at a time.
_CHUNK = 1000

#: Called while data are read, with the number of samples so far.
OnRead = Callable[[int], None]


class TensorData:
    """Samples in memory, that can be chosen one by one.

    Args:
        inputs, targets: pytrees of tensors ``[n, ...]`` of one n.
        what: "training data", "test data": for messages.

    Attributes:
        count: n.

    Raises:
        LLPFError: no samples, or other numbers of inputs than of targets.
    """

    def __init__(self, inputs: Any, targets: Any, what: str = "data") -> None:
        self.inputs, self.targets, self.what = inputs, targets, what
        leaves = tensors_of(inputs), tensors_of(targets)
        counts = {len(leaf) for part in leaves for leaf in part}
        if any(not part for part in leaves):
            raise LLPFError(f"the {what} has no tensors for its {'inputs' if not leaves[0] else 'targets'}")
        if len(counts) > 1:
            of_inputs, of_targets = (" and ".join(map(str, sorted({len(leaf) for leaf in part}))) for part in leaves)
            raise LLPFError(f"the {what} has {of_inputs} inputs but {of_targets} targets")
        self.count = counts.pop()
        if self.count == 0:
            raise LLPFError(f"the {what} is empty")

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the samples ``index`` (int64 ``[b]``, on the tensors' device)."""
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), (self.inputs, self.targets))

    def subset(self, index: Tensor) -> TensorData:
        """The samples ``index`` (int64 ``[b]``, on any device) as data."""
        return TensorData(*self.take(index.to(first_tensor(self.targets).device)), self.what)

    def to(self, device: torch.device, dtype: torch.dtype) -> TensorData:
        """The samples on ``device`` as :func:`move_batch` gives them; ``self`` where nothing changes."""
        inputs, targets = move_batch(self.inputs, self.targets, device, dtype)
        pairs = zip(tensors_of((self.inputs, self.targets)), tensors_of((inputs, targets)), strict=True)
        # self has its digests cached: a search of many paths computes them once.
        return self if all(old is new for old, new in pairs) else TensorData(inputs, targets, self.what)

    @functools.cached_property
    def sha256(self) -> str:
        """:func:`data_digest` of the samples."""
        return data_digest([(self.inputs, self.targets)])

    @functools.cached_property
    def set_sha256(self) -> str:
        """:func:`sample_set_digest` of the samples."""
        return sample_set_digest([(self.inputs, self.targets)])


class DatasetData:
    """The items of a map-style ``torch.utils.data.Dataset``, stacked by torch's ``default_collate``.

    Training reads the items of each batch again, so random transforms act every time. Items to evaluate on are read
    once (:meth:`materialize`).

    Attributes:
        count: number of items.

    Raises:
        LLPFError: no items, or a ``Dataset`` without a length.
    """

    def __init__(self, dataset: Dataset[Any], what: str = "data") -> None:
        self.dataset, self.what = dataset, what
        try:
            self.count = len(dataset)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            raise LLPFError(
                f"the {what} is a {type(dataset).__name__} without a length: give it __len__, or pass a DataLoader"
            ) from error
        if self.count == 0:
            raise LLPFError(f"the {what} is empty")

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the items ``index`` (int64 ``[b]``).

        Raises:
            LLPFError: an item fails, or items cannot be stacked.
        """
        name = type(self.dataset).__name__
        try:
            items = [self.dataset[i] for i in index.tolist()]
        except Exception as error:  # code of the user
            raise LLPFError(f"the {self.what}: {name}[i] fails: {type(error).__name__}: {first_line(error)}") from error
        try:
            batch = default_collate(items)
        except (TypeError, RuntimeError, KeyError) as error:
            raise LLPFError(
                f"the {self.what}: items of the {name} cannot be stacked ({first_line(error)}); pass a DataLoader with "
                "a collate_fn"
            ) from error
        return split_batch(batch, self.what)

    def materialize(self, samples: int | None = None) -> TensorData:
        """All items in memory; where they take more than half of it, ``samples`` items of a fixed random choice.

        Raises:
            LLPFError: the items do not fit and no number is given; they differ in shape, or are not tensors.
        """
        index = torch.arange(self.count)
        item_size = _size(self.take(index[:1]))
        if samples and item_size * self.count > _most_bytes():
            index = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:samples].sort().values
        _check_memory(item_size * len(index), self.what)
        parts = [self.take(part) for part in index.split(_CHUNK)]
        for leaf in pytree.tree_leaves(parts[0]):
            if not isinstance(leaf, Tensor):
                raise LLPFError(
                    f"the {self.what}: items of the {type(self.dataset).__name__} hold a {type(leaf).__name__} among "
                    "inputs or targets; leave it out, or pass a DataLoader, whose batches may hold anything"
                )
        try:
            inputs, targets = (pytree.tree_map(lambda *leaves: torch.cat(leaves), *side) for side in zip(*parts))  # noqa: B905
        except (RuntimeError, ValueError) as error:
            raise LLPFError(
                f"the {self.what}: items differ in shape ({first_line(error)}); pass a DataLoader with a collate_fn"
            ) from error
        return TensorData(inputs, targets, self.what)


class BatchedData:
    """Batches of a DataLoader, a list, or anything that can be iterated repeatedly; they stay whole.

    Args:
        source: iterable of batches in a form of :func:`split_batch`.
        limit: samples after which reading stops. When missing, a source without a length must end within
            :data:`STREAM_LIMIT` samples.
    """

    def __init__(self, source: Iterable[Any], what: str = "data", limit: int | None = None) -> None:
        self.source, self.what, self.limit = source, what, limit
        self._warned = False

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) of each batch in one pass over the source, without empty batches.

        Raises:
            LLPFError: the source fails, or gives something other than a batch.
        """
        try:
            batches = iter(self.source)
        except Exception as error:  # code of the user
            raise self._failed(error) from error
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except LLPFError:
                raise
            except Exception as error:
                raise self._failed(error) from error
            inputs, targets = split_batch(batch, self.what, warn=not self._warned)
            self._warned = True
            if batch_length(inputs, targets):
                yield inputs, targets

    def _failed(self, error: Exception) -> LLPFError:
        # The error of a loader's worker has the text of its traceback, which ends with the error itself.
        text = str(error)
        kind = f"{type(error).__name__}: "
        at_end = text.startswith("Caught ") and text.rfind(f"\n{kind}")
        what = " ".join(text[at_end:].split()) if at_end and at_end > 0 else describe_error(error)
        return LLPFError(f"the {self.what}: reading a batch fails: {what}")

    @property
    def has_length(self) -> bool:
        """Whether the source says how many batches it has."""
        try:
            len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return False
        return True

    @property
    def dataset_length(self) -> int | None:
        """Number of samples in the loader's data set; None where that is unknown."""
        dataset = getattr(self.source, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset):
            return None
        try:
            return len(dataset)
        except (TypeError, NotImplementedError):
            return None

    def materialize(self, samples: int | None = None, on_read: OnRead | None = None) -> list[tuple[Any, Any]]:
        """The batches of one pass in memory: all of them, or the first with ``samples`` samples or more.

        Raises:
            LLPFError: no batch; data that do not end, or do not fit into half of this machine's memory.
        """
        batches: list[tuple[Any, Any]] = []
        count = size = 0
        wanted = min((n for n in (samples, self.limit) if n), default=None)
        for batch in self:
            batches.append(batch)
            count += batch_length(*batch)
            size += _size(batch)
            if on_read is not None:
                on_read(count)
            if wanted is not None and count >= wanted:
                break
            _check_memory(size, self.what)
            if wanted is None and count >= STREAM_LIMIT and not self.has_length:
                raise LLPFError(
                    f"the {self.what} has no length and had not ended after {count} samples: say how many to read "
                    "(max_samples)"
                )
        if not batches:
            raise LLPFError(f"the {self.what} is empty")
        return batches


#: Data in any of the three forms.
Data = TensorData | DatasetData | BatchedData


def repeats(data: Data, seeds: tuple[int, int]) -> bool:
    """Whether passes over ``data`` begin with the same samples when torch's generator is seeded with ``seeds``."""
    if isinstance(data, TensorData):
        return True

    def first_digest(seed: int) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if isinstance(data, DatasetData):
                return data_digest([data.take(torch.arange(min(data.count, _CHUNK // 10)))])
            return data_digest([next(iter(data))])

    return len({first_digest(seed) for seed in seeds}) == 1


def as_data(data: Any, what: str = "training data", *, batch_size: int = 64, limit: int | None = None) -> Data:
    """``data`` of a caller as one of the three forms.

    ==============================================  =====================================================
    a pair (inputs, targets) of tensors or arrays    samples; inputs may be a tuple or a mapping of arrays
    a mapping of arrays with ``labels``              samples; the rest are inputs by name
    ``TensorDataset``                                samples
    another map-style ``Dataset``                    items, stacked by torch's ``default_collate``
    ``DataLoader``, a list of batches, any iterable  ready-made batches
    ``IterableDataset``                              batches of ``batch_size`` samples
    ==============================================  =====================================================

    A third part (an index, say) beside inputs and targets is not used, and a warning says so.

    Args:
        what: "training data", "test data": for messages.
        batch_size: of an ``IterableDataset``.
        limit: samples after which reading of batches stops.

    Raises:
        LLPFError: something else; a generator, which can be read only once; empty data; other numbers of inputs than
            of targets.
    """
    if isinstance(data, (TensorData, DatasetData, BatchedData)):
        return data
    if isinstance(data, Dataset):
        if isinstance(data, TensorDataset):
            return _pair(data.tensors, what)
        if isinstance(data, IterableDataset):
            return BatchedData(DataLoader(data, batch_size=batch_size), what, limit)
        return DatasetData(data, what)
    if isinstance(data, DataLoader):
        return BatchedData(data, what, limit)
    if isinstance(data, tuple) or not isinstance(data, Iterable):
        data = by_name(data)
    if is_array(data):
        raise LLPFError(f"the {what} is one {type(data).__name__}; pass a pair (inputs, targets)")
    if isinstance(data, Mapping):
        inputs, targets = split_batch(data, what)
        return TensorData(_arrays(inputs, what), _arrays(targets, what), what)
    if isinstance(data, (tuple, list)):
        if not data:
            raise LLPFError(f"the {what} is empty")
        if len(data) == 2 and data[1] is None:
            raise LLPFError(f"the {what} has no targets (None); a loss that needs none may be given the inputs as such")
        return _pair(data, what) if _is_pair(data) else BatchedData(data, what, limit)
    if isinstance(data, Iterator):
        raise LLPFError(
            f"the {what} is a {type(data).__name__}, which can be read only once: pass list(...) of it, or a DataLoader"
        )
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return BatchedData(data, what, limit)
    raise LLPFError(
        f"the {what} must be a pair (inputs, targets), a Dataset, a DataLoader or a list of batches; "
        f"got {type(data).__name__}"
    )


def pair_data(inputs: Any, targets: Any, what: str = "training data") -> TensorData:
    """Samples from ``inputs`` and ``targets``, pytrees of tensors or arrays; LLPFError for anything else."""
    return TensorData(_arrays(inputs, what), _arrays(targets, what), what)


def _pair(parts: Sequence[Any], what: str) -> TensorData:
    if len(parts) < 2:
        raise LLPFError(f"the {what} has no targets: pass a pair (inputs, targets)")
    if len(parts) > 2:
        warnings.warn(
            f"the {what} has {len(parts)} parts: the first is taken for the inputs, the second for the targets; the "
            "rest is not used",
            stacklevel=4,
        )
    return pair_data(parts[0], parts[1], what)


def _is_pair(data: Sequence[Any]) -> bool:
    """Whether a tuple or list is (inputs, targets) and not a list of batches.

    It is a pair where not all of its items look like batches. ``((p, q), (y, weight))`` could be either: a tuple of two
    with equal numbers of samples counts as a pair, a list as two batches.
    """
    if len(data) not in (2, 3):
        return False
    leaves = pytree.tree_leaves([with_dicts(part) for part in data[:2]])
    if not leaves or not all(is_array(leaf) or leaf is None for leaf in leaves):
        return False
    if not all(_looks_like_batch(item) for item in data):
        return any(leaf is not None for leaf in leaves)
    alike = isinstance(data, tuple) and len(data) == 2 and not any(isinstance(item, Mapping) for item in data)
    return alike and len({len(leaf) if numpy.ndim(leaf) else 0 for leaf in leaves if leaf is not None}) == 1


def _looks_like_batch(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(name in item for name in TARGET_NAMES)
    return isinstance(item, (tuple, list)) and len(item) >= 2


def _arrays(value: Any, what: str) -> Any:
    """``value`` as a pytree of tensors alone, each with samples in its first dimension."""
    value = as_tensors(value, what)
    for leaf in pytree.tree_leaves(value):
        if not isinstance(leaf, Tensor):
            raise LLPFError(
                f"the {what} holds a {type(leaf).__name__}; pass tensors or NumPy arrays (a list of batches, or a "
                "DataLoader, may hold anything beside them)"
            )
        if leaf.dim() == 0:
            raise LLPFError(f"the {what} holds one number, not samples: tensors need a first dimension of samples")
    return value


def _size(batch: Any) -> int:
    """Bytes of a batch's tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tensors_of(batch))


@functools.cache
def _most_bytes() -> float:
    """Half of this machine's memory; 8 GiB where its size is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, OSError, ValueError):
        return float(8 << 30)


def _check_memory(size: float, what: str) -> None:
    if size > _most_bytes():
        raise LLPFError(
            f"the {what} takes more than {_most_bytes() / 2**30:.0f} GiB, half of this machine's memory; pass a part "
            "of it (torch.utils.data.Subset, max_samples)"
        )
