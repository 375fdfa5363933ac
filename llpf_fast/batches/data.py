"""Data as people have them, as one of three things: tensors, items of a Dataset, or batches that stay as they came."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ..errors import LLPFError
from ..user_code import said
from .forward import first_line, shape_of

#: Under which names a batch that is a mapping holds its targets (``labels``: transformers).
TARGET_NAMES = ("labels", "label", "targets", "target")
#: Samples after which data without a length counts as endless, where no limit is given.
STREAM_LIMIT = 100_000
#: Items of a Dataset read at a time when it is held in memory.
_CHUNK = 1000

#: Whole-number targets that torch's losses do not take as they are.
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)

#: Called while data are read, with the number of samples so far.
Reading = Callable[[int], None]


class TensorData:
    """Inputs and targets in memory: pytrees of tensors ``[n, ...]`` of one n. Samples can be chosen one by one.

    Args:
        what: "training data", "test data": for messages.

    Raises:
        LLPFError: no samples, or other numbers of inputs than of targets.
    """

    def __init__(self, inputs: Any, targets: Any, what: str = "data") -> None:
        self.inputs, self.targets, self.what = inputs, targets, what
        leaves = _leaves(inputs), _leaves(targets)
        counts = {len(leaf) for part in leaves for leaf in part}
        if any(not part for part in leaves):
            raise LLPFError(f"the {what} has no tensors for its {'inputs' if not leaves[0] else 'targets'}")
        if len(counts) > 1:
            ours, theirs = (sorted({len(leaf) for leaf in part}) for part in leaves)
            raise LLPFError(
                f"the {what} has {' and '.join(map(str, ours))} inputs but {' and '.join(map(str, theirs))} targets"
            )
        self.count = counts.pop()
        if self.count == 0:
            raise LLPFError(f"the {what} is empty")

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """(inputs, targets) of the samples ``index`` (int64 ``[b]``, on the tensors' device)."""
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), (self.inputs, self.targets))

    def subset(self, index: Tensor) -> TensorData:
        return TensorData(*self.take(index.to(_leaves(self.targets)[0].device)), self.what)

    def to(self, device: torch.device, dtype: torch.dtype) -> TensorData:
        """On ``device``, floating values as ``dtype``, whole-number targets as int64; itself where nothing changes."""
        inputs, targets = move_batch(self.inputs, self.targets, device, dtype)
        pairs = zip(_leaves((self.inputs, self.targets)), _leaves((inputs, targets)), strict=True)
        # Digests are kept with the object: a search of many paths forms them once.
        return self if all(old is new for old, new in pairs) else TensorData(inputs, targets, self.what)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the samples in their order, as :func:`data_digest` forms it."""
        return data_digest([(self.inputs, self.targets)])

    @functools.cached_property
    def set_sha256(self) -> str:
        """Of the samples in whatever order, as :func:`sample_set_digest` forms it."""
        return sample_set_digest([(self.inputs, self.targets)])


class DatasetData:
    """The items of a map-style ``torch.utils.data.Dataset``, stacked by torch's ``default_collate``.

    A search reads the items of each batch anew, so transforms that draw random numbers do so every time. What points
    are evaluated on is read once and held.
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
        """(inputs, targets) of the items ``index`` (int64 ``[b]``)."""
        name = type(self.dataset).__name__
        try:
            items = [self.dataset[i] for i in index.tolist()]
        except Exception as error:  # the user's own code
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
        """All items in memory; where they are more than half of it, ``samples`` items chosen at random once.

        Raises:
            LLPFError: more items than fit, and no number given.
        """
        index = torch.arange(self.count)
        one = _bytes(self.take(index[:1]))
        if samples and one * self.count > _most_bytes():
            index = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:samples].sort().values
        _check_memory(one * len(index), self.what)
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
    """Batches of a DataLoader, a list, or anything that can be iterated again and again. They are never cut anew.

    Args:
        source: gives batches as :func:`split_batch` takes them.
        limit: samples after which reading stops. When missing, a source without a length must end within
            :data:`STREAM_LIMIT` samples.
    """

    def __init__(self, source: Iterable[Any], what: str = "data", limit: int | None = None) -> None:
        self.source, self.what, self.limit = source, what, limit
        self._warned = False

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) of each batch, one pass over the source; batches without a sample are passed over.

        Raises:
            LLPFError: the source fails, or gives what is no batch.
        """
        try:
            batches = iter(self.source)
        except Exception as error:  # the user's own code
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
            found = split_batch(batch, self.what, warn=not self._warned)
            self._warned = True
            if batch_length(*found):
                yield found

    def _failed(self, error: Exception) -> LLPFError:
        # A loader's worker hands its error on as the text of its traceback, which ends with the error.
        text = str(error)
        kind = f"{type(error).__name__}: "
        at_end = text.startswith("Caught ") and text.rfind(f"\n{kind}")
        what = " ".join(text[at_end:].split()) if at_end and at_end > 0 else said(error)
        return LLPFError(f"the {self.what}: reading a batch fails: {what}")

    @property
    def has_length(self) -> bool:
        try:
            len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return False
        return True

    @property
    def dataset_length(self) -> int | None:
        """Samples in the data set of a loader; None where nothing says so."""
        dataset = getattr(self.source, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset):
            return None
        try:
            return len(dataset)
        except (TypeError, NotImplementedError):
            return None

    def materialize(self, samples: int | None = None, reading: Reading | None = None) -> list[tuple[Any, Any]]:
        """The batches of one pass, held in memory: all of them, or the first with ``samples`` samples or more.

        Raises:
            LLPFError: no batch; data that do not end, or do not fit into half of this machine's memory.
        """
        held: list[tuple[Any, Any]] = []
        count = size = 0
        wanted = min((n for n in (samples, self.limit) if n), default=None)
        for batch in self:
            length = batch_length(*batch)
            held.append(batch)
            count, size = count + length, size + _bytes(batch)
            if reading is not None:
                reading(count)
            if wanted is not None and count >= wanted:
                break
            _check_memory(size, self.what)
            if wanted is None and count >= STREAM_LIMIT and not self.has_length:
                raise LLPFError(
                    f"the {self.what} has no length and had not ended after {count} samples: say how many to read "
                    "(max_samples)"
                )
        if not held:
            raise LLPFError(f"the {self.what} is empty")
        return held


Data = TensorData | DatasetData | BatchedData


def repeats(data: Data, seeds: tuple[int, int]) -> bool:
    """Whether two passes over ``data``, with torch's generator seeded so, begin with the same samples."""

    if isinstance(data, TensorData):
        return True

    def beginning(seed: int) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if isinstance(data, DatasetData):
                return data_digest([data.take(torch.arange(min(data.count, _CHUNK // 10)))])
            return data_digest([next(iter(data))])

    return len({beginning(seed) for seed in seeds}) == 1


def as_data(data: Any, what: str = "training data", *, batch_size: int = 64, limit: int | None = None) -> Data:
    """What a caller hands over as data, told apart by its form.

    ==============================================  =====================================================
    a pair (inputs, targets) of tensors or arrays    samples; inputs may be a tuple or a mapping of arrays
    a mapping of arrays with ``labels``              samples; the rest are inputs by name
    ``TensorDataset``                                samples
    another map-style ``Dataset``                    items, stacked by torch's ``default_collate``
    ``DataLoader``, a list of batches, any iterable  batches as they come
    ``IterableDataset``                              batches of ``batch_size`` of it
    ==============================================  =====================================================

    A third part (an index, say) beside inputs and targets is not used, and a warning says so.

    Raises:
        LLPFError: something else; a generator, which can be read only once; empty data; numbers that differ.
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
        data = _by_name(data)
    if _is_array(data):
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


def sample_set_digest(batches: Iterable[tuple[Any, Any]]) -> str:
    """sha256 sums of the single samples, added up: the same in whatever order they come. MNIST takes 0.4 s."""
    total = 0
    for inputs, targets in batches:
        count = batch_length(inputs, targets)
        rows = [
            leaf.detach().resolve_conj().resolve_neg().cpu().contiguous().view(count, -1).view(torch.uint8).numpy()
            for leaf in _leaves((inputs, targets))
            if leaf.dim() and len(leaf) == count and leaf.numel()
        ]
        for parts in zip(*rows, strict=True):
            found = hashlib.sha256()
            for part in parts:
                found.update(part.data)
            total += int.from_bytes(found.digest(), "little")
    return f"{total % 2**256:064x}"


def pair_data(inputs: Any, targets: Any, what: str = "training data") -> TensorData:
    """Samples from ``inputs`` and ``targets``, pytrees of tensors or arrays; LLPFError for anything else."""
    return _pair((inputs, targets), what)


def split_batch(batch: Any, what: str = "data", *, warn: bool = True) -> tuple[Any, Any]:
    """(inputs, targets) of one batch.

    A pair; a triple, whose third part is not used; or a mapping, of which ``labels`` (``label``, ``targets``,
    ``target``) are the targets and the rest the inputs by name. Arrays become tensors. A named tuple or a dataclass is
    such a mapping where one of its fields has one of those names; a named tuple of inputs and targets stays a pair.

    Raises:
        LLPFError: another form.
    """
    batch = _by_name(batch)
    if isinstance(batch, Mapping):
        names = [name for name in TARGET_NAMES if name in batch]
        rest = {str(name): value for name, value in batch.items() if name not in names}
        if len(names) != 1 or not rest:
            found = f"has {' and '.join(names)}" if names else f"has {', '.join(map(str, batch)) or 'nothing'}"
            raise LLPFError(
                f"a batch of the {what} that is a mapping needs its targets under one of {', '.join(TARGET_NAMES)}, "
                f"and inputs beside them; it {found}"
            )
        return _parts(rest, batch[names[0]], what)
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        if len(batch) > 2 and warn:
            warnings.warn(
                f"batches of the {what} have {len(batch)} parts: the first is taken for the inputs, the second for the "
                "targets; the rest is not used",
                stacklevel=3,
            )
        return _parts(batch[0], batch[1], what)
    raise LLPFError(
        f"a batch of the {what} must be a pair (inputs, targets) or a mapping with {TARGET_NAMES[0]!r}; "
        f"got {shape_of(batch)}"
    )


def _by_name(batch: Any) -> Any:
    """A named tuple or dataclass that names its targets as a mapping; everything else as it is."""
    if isinstance(batch, tuple):
        names = getattr(batch, "_fields", ())
        named = [name for name in names if name in TARGET_NAMES]
        # Where the targets come second of two, position and name say the same.
        return dict(zip(names, batch, strict=True)) if named and names[1:] != tuple(named) else batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return values if any(name in TARGET_NAMES for name in values) else batch
    return batch


def _parts(inputs: Any, targets: Any, what: str) -> tuple[Any, Any]:
    found = _tensors(inputs, what), _tensors(targets, what)
    for side, values in zip(("inputs", "targets"), found, strict=True):
        if not _leaves(values):
            raise LLPFError(
                f"the {side} of a batch of the {what} hold no tensor or array: {shape_of(values)}; give tensors, or a "
                "tuple or mapping of them"
            )
    return found


def batch_length(inputs: Any, targets: Any) -> int:
    """Number of samples in a batch: the length that most of its tensors have, of the first target where none has more.

    Labels of different length laid end to end (CTC), or a list of boxes for each image, are longer or shorter than
    their batch. 0 where all tensors are empty; 1 where all are single numbers.
    """
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    lengths = [len(leaf) for leaf in (*_leaves(targets), *_leaves(inputs)) if leaf.dim()]
    counted = collections.Counter(length for length in lengths if length)
    return counted.most_common(1)[0][0] if counted else 0 if lengths else 1


def move_batch(inputs: Any, targets: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """On ``device``, floating values as ``dtype``, whole-number targets as int64, as losses take them.

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


def data_digest(batches: Iterable[tuple[Any, Any]]) -> str:
    """sha256 over the samples in their order: the same however they are cut into batches.

    Dtypes, the shape of one sample and the bytes count. MNIST (188 MB) takes 0.2 s.
    """
    parts: dict[str, Any] = {}
    for inputs, targets in batches:
        for side, values in (("inputs", inputs), ("targets", targets)):
            for path, leaf in pytree.tree_flatten_with_path(values)[0]:
                if not isinstance(leaf, Tensor):
                    continue
                key = json.dumps([side, pytree.keystr(path), str(leaf.dtype), list(leaf.shape[1:])])
                plain = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous()
                parts.setdefault(key, hashlib.sha256()).update(plain.reshape(-1).view(torch.uint8).numpy().data)
    found = hashlib.sha256()
    for key in sorted(parts):
        found.update(key.encode() + parts[key].digest())
    return found.hexdigest()


def _pair(parts: Sequence[Any], what: str) -> TensorData:
    if len(parts) < 2:
        raise LLPFError(f"the {what} has no targets: pass a pair (inputs, targets)")
    if len(parts) > 2:
        warnings.warn(
            f"the {what} has {len(parts)} parts: the first is taken for the inputs, the second for the targets; the "
            "rest is not used",
            stacklevel=4,
        )
    return TensorData(_arrays(parts[0], what), _arrays(parts[1], what), what)


def _is_pair(data: Sequence[Any]) -> bool:
    """Whether a tuple or list is (inputs, targets), not a list of batches: not all of its items look like batches.

    ``((p, q), (y, weight))`` could be both: a tuple of two with as many samples everywhere is a pair, a list is two
    batches.
    """
    if len(data) not in (2, 3):
        return False
    leaves = pytree.tree_leaves([_plain(part) for part in data[:2]])
    if not leaves or not all(_is_array(leaf) or leaf is None for leaf in leaves):
        return False
    if not all(_looks_like_batch(item) for item in data):
        return any(leaf is not None for leaf in leaves)
    alike = isinstance(data, tuple) and len(data) == 2 and not any(isinstance(item, Mapping) for item in data)
    return alike and len({len(leaf) if numpy.ndim(leaf) else 0 for leaf in leaves if leaf is not None}) == 1


def _looks_like_batch(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(name in item for name in TARGET_NAMES)
    return isinstance(item, (tuple, list)) and len(item) >= 2


def _is_array(value: Any) -> bool:
    """Tensors, NumPy's and whatever NumPy can read without copying element by element (pandas, JAX)."""
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, type))


def _plain(value: Any) -> Any:
    """Mappings as dicts, however deep: a pytree looks into no other (``UserDict``, classes derived from dict)."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return pytree.tree_map(lambda leaf: _plain(leaf) if isinstance(leaf, Mapping) else leaf, value)


def _tensors(value: Any, what: str) -> Any:
    """``value`` with its arrays as tensors; what is neither stays (a network may take a flag)."""
    if isinstance(value, Tensor):
        return _tensor(value, what)

    def taken(leaf: Any) -> Any:
        if _is_array(leaf):
            return _tensor(leaf, what)
        if dataclasses.is_dataclass(leaf) and any(_is_array(getattr(leaf, f.name)) for f in dataclasses.fields(leaf)):
            raise LLPFError(
                f"the {what} holds a {type(leaf).__name__}, a dataclass of arrays; make it a tuple or a mapping"
            )
        return leaf

    return pytree.tree_map(taken, _plain(value))


def _arrays(value: Any, what: str) -> Any:
    """``value`` as tensors that have samples in their first dimension, and nothing else."""
    value = _tensors(value, what)
    for leaf in pytree.tree_leaves(value):
        if not isinstance(leaf, Tensor):
            raise LLPFError(
                f"the {what} holds a {type(leaf).__name__}; pass tensors or NumPy arrays (a list of batches, or a "
                "DataLoader, may hold anything beside them)"
            )
        if leaf.dim() == 0:
            raise LLPFError(f"the {what} holds one number, not samples: tensors need a first dimension of samples")
    return value


def _tensor(value: Any, what: str) -> Tensor:
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
            warnings.simplefilter("ignore")  # an array that may not be written to: nothing here writes
            return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise LLPFError(f"the {what} holds an array of {kind}, which torch has no tensors for") from error


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _bytes(batch: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in _leaves(batch))


@functools.cache
def _most_bytes() -> float:
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
