"""Model files: read and written in several formats; tensor names matched to those of an architecture."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..errors import LLPFError, shown
from .durable import reading, write_bytes
from .pickle_stand_ins import pickle_stand_ins
from .state import decode_state, detached, encode_state, header

Value = TypeVar("Value")

#: Attributes that torch's wrappers insert at any depth (torch.compile, FSDP, activation checkpointing). Users' modules
#: have no such names.
_RESERVED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: Attributes that hold a whole network: of DataParallel and DistributedDataParallel (``module``), usually of Lightning
#: modules (``model``, ``net``, ``network``), of Lightning Fabric and DeepSpeed (``_forward_module``).
_WRAPPERS = ("module.", "model.", "net.", "network.", "_forward_module.")
#: Names of weights that are a running average of the trained ones.
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow|teacher|n_averaged)([._\d]|$)", re.IGNORECASE)
_SHOWN = 3


def is_averaged(name: str) -> bool:
    """Whether the name of a tensor or of a checkpoint's entry is one of averaged weights (EMA, SWA)."""
    return _AVERAGED.search(name) is not None


def is_extra_state(name: str) -> bool:
    """Whether a ``state_dict`` entry comes from a module's ``get_extra_state``."""
    return name.rpartition(".")[2] == "_extra_state"


def match_names(
    entries: Mapping[str, Value],
    expected: Collection[str],
    source: Path | str,
    *,
    tied: Sequence[Collection[str]] = (),
    optional: Collection[str] = (),
) -> dict[str, Value]:
    """``entries`` under the names of the architecture, whose tensors are called ``expected``.

    Where the names differ, the attributes of wrappers are removed on both sides: ``_orig_mod.`` of torch.compile
    anywhere; ``module.``, ``model.``, ``net.`` ... where *every* name begins so. The result counts only where the names
    are then exactly the expected ones. Otherwise the names are returned unchanged, and ``compare_architectures`` says
    what differs.

    Args:
        expected: the names, or the tensors by name; with tensors, a network matches only where the shapes do.
        tied: groups of expected names of one tensor: one name of a group is enough.
        optional: expected names that may be missing.

    Raises:
        LLPFError: naming ``source``, when it holds the expected network under one prefix beside other tensors (a second
            network, averaged weights, metrics): it is not clear which network is meant.
    """
    if entries.keys() == set(expected):
        return dict(entries)
    expected_forms = list(_forms(expected))
    for form in _forms(entries):
        for target in expected_forms:
            if form.keys() == target.keys():
                return {target[short]: entries[name] for short, name in form.items()}
    for form in _forms(entries) if tied or optional else ():
        for target in expected_forms:
            if form.keys() <= target.keys():
                matched = {target[short]: entries[name] for short, name in form.items()}
                implied = (group for group in tied if not matched.keys().isdisjoint(group))
                if {*matched, *optional}.union(*implied) >= set(expected):
                    return matched
    _refuse_mixture(entries, expected, source)
    return dict(entries)


def _forms(names: Collection[str]) -> Iterator[dict[str, str]]:
    """Short name -> name: first unchanged, then without reserved attributes, then without wrappers, one by one."""
    form = {name: name for name in names}
    yield form
    for remove in (_without_reserved, _without_wrapper):
        while (shorter := remove(form)) is not None:
            form = shorter
            yield form


def _without_reserved(form: dict[str, str]) -> dict[str, str] | None:
    shorter = {}
    for short, name in form.items():
        for attribute in _RESERVED:
            short = re.sub(rf"(^|(?<=\.)){re.escape(attribute)}", "", short)
        shorter[short] = name
    # Where two names become one they belong to two tensors, and the attribute was no wrapper's.
    return shorter if len(shorter) == len(form) and shorter.keys() != form.keys() else None


def _without_wrapper(form: dict[str, str]) -> dict[str, str] | None:
    for wrapper in _WRAPPERS:
        if form and all(short.startswith(wrapper) and len(short) > len(wrapper) for short in form):
            return {short.removeprefix(wrapper): name for short, name in form.items()}
    return None


def _has(entries: Mapping[str, Value], name: str, expected: Collection[str], target: str) -> bool:
    """Whether ``entries`` has ``name``; with the shape of ``target``, where both are tensors."""
    if name not in entries:
        return False
    shape = getattr(expected[target], "shape", None) if isinstance(expected, Mapping) else None
    return shape is None or getattr(entries[name], "shape", shape) == shape


def _refuse_mixture(entries: Mapping[str, Value], expected: Collection[str], source: Path | str) -> None:
    """LLPFError where ``entries`` has the expected network under a prefix, beside other tensors or several times."""
    first = next(iter(expected), "")
    prefixes = [name.removesuffix(first) for name in entries if name.endswith(first)]
    whole = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    whole = [prefix for prefix in whole if all(_has(entries, prefix + name, expected, name) for name in expected)]
    rest = [name for name in entries if not any(name.startswith(prefix) for prefix in whole)] if all(whole) else []
    if len(whole) == 1 and whole[0] and rest:
        counts = Counter(name.split(".", 1)[0] for name in rest)
        others = ", ".join(f"{count} under {part!r}" for part, count in list(counts.items())[:_SHOWN])
        averaged = " (averaged weights)" if any(map(is_averaged, rest)) else ""
        raise LLPFError(
            f"{source} holds the network under {whole[0].rstrip('.')!r} and other tensors beside it: "
            f"{others}{averaged}; save those that begin with {whole[0]!r} alone"
        )
    if len(whole) > 1:
        listed = " and ".join(repr(prefix.rstrip(".")) if prefix else "no prefix" for prefix in whole[:_SHOWN])
        raise LLPFError(
            f"{source} holds {len(whole)} networks of the expected architecture (under {listed}); save the one you mean"
        )


#: Keys of the state dict in checkpoint dictionaries: of LLPF's authors and Lightning; of PyTorch's tutorials; of timm
#: and DeiT; of widely used CIFAR code.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")
ModelFormat = Literal["authors", "state_dict", "safetensors"]
#: First byte of every pickle that torch.save has written outside a zip archive.
_PICKLE = b"\x80"
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file: the state dict (CPU tensors) and, where recorded, the names of model and data set.

    ``extra`` has the entries by name that come from ``get_extra_state`` and are no tensors.
    """

    state: dict[str, Tensor]
    model_name: str | None
    dataset_name: str | None
    path: Path
    extra: dict[str, Any] = field(default_factory=dict)


def load_model_file(
    path: str | os.PathLike[str], expected: Mapping[str, Any] | Collection[str] | None = None, *, key: str | None = None
) -> ModelFile:
    """Load a model's state dict.

    The formats are a state dict saved by ``torch.save``; a dictionary with one under ``state_dict`` (the LLPF authors'
    ``*.model.pt`` with ``model_name`` and ``dataset_name``; Lightning), ``model_state_dict``, ``model`` or ``net``, or
    with a single state dict under another key; safetensors. The content decides, not the suffix. Code inside a pickle
    is never executed (``weights_only``). Numbers and arrays of NumPy, dates, paths and configurations (argparse,
    OmegaConf, Lightning) beside the state dict are ignored.

    Args:
        path: the file.
        expected: the names of the architecture's tensors, or its ``state_dict()``. Prefixes of wrappers (DataParallel,
            torch.compile, Lightning modules) are removed where the names are then exactly these (``match_names``).
            When missing, names are not changed. ``load_endpoint`` also handles ties, dtypes and extra state.
        key: the entry of a checkpoint dictionary to load, where it is another one (``"state_dict_ema"``).

    Raises:
        LLPFError: one line naming the file and what it is, when it is missing, a directory, empty, text, cut off, a
            pickle with code or objects in it, or holds no tensors by name; when it holds averaged weights (EMA) only,
            or several state dicts, and no ``key`` was given; when the expected network is mixed with other tensors.
    """
    loaded = _load(Path(path), key)
    if expected is None:
        return loaded
    if isinstance(expected, Mapping):
        expected = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
    return replace(loaded, state=match_names(loaded.state, expected, loaded.path))


def _load(path: Path, key: str | None) -> ModelFile:
    with reading(path):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise LLPFError(f"{path} is a directory; name a model file")
        if not stat.S_ISREG(mode):
            # Reading a pipe waits, and a device may never end.
            raise LLPFError(f"{path} is a pipe or a device; copy it into a file and name that")
        with open(path, "rb") as file:
            start = file.read(4096)
    if not start:
        raise LLPFError(f"{path} is empty; it is no model file")
    if _is_safetensors(start):
        if key is not None:
            raise LLPFError(f"{path} is a safetensors file, which has no entry {key!r}; leave out key")
        return _from_safetensors(path)
    if path.name.endswith(".index.json"):
        raise LLPFError(f"{path} is the index of a model in several files; load them all and save one state dict")
    if _is_text(start):
        raise LLPFError(f"{path} is a text file, not a model file (.pt, .pth or .safetensors)")
    return _from_pickle(path, start, key)


def save_model_file(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    model_name: str | None = None,
    dataset_name: str | None = None,
    *,
    format: ModelFormat | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write ``state`` (any device; views are copied) so that ``load_model_file`` reads it back bit for bit.

    ``format`` is ``"authors"`` (the LLPF authors' dictionary of ``state_dict``, ``model_name`` and ``dataset_name``,
    which their programs read as ``*.model.pt``), ``"state_dict"`` (which has no names) or ``"safetensors"``; when
    missing, safetensors where ``path`` ends so and otherwise the authors'. ``training``, plain values on how it was
    trained, becomes an entry of that name.

    The write is atomic and durable.

    Raises:
        LLPFError: naming the folder when it is missing or the disk refuses; an unknown format; not a state dict.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise LLPFError(f"a model file needs a path, got {shown(path)}")
    path = Path(path)
    _check_saved(state)
    names: dict[str, Any] = {"model_name": model_name, "dataset_name": dataset_name}
    if training is not None:
        names["training"] = dict(training)
    chosen = format or ("safetensors" if path.suffix == _SAFETENSORS else "authors")
    if chosen == "safetensors":
        write_bytes(path, encode_state(state, json.dumps(names)))
        return
    if chosen not in ("authors", "state_dict"):
        raise LLPFError(f"unknown model file format {format!r}; known: authors, state_dict, safetensors")
    tensors = {name: detached(tensor) for name, tensor in state.items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors, **names} if chosen == "authors" else tensors, buffer)
    write_bytes(path, buffer.getvalue())


def _check_saved(state: object) -> None:
    if not isinstance(state, Mapping):
        hint = ": pass its state_dict()" if hasattr(state, "state_dict") else ""
        raise LLPFError(f"a model file needs a state dict, got {type(state).__name__}{hint}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise LLPFError(
                f"entry {shown(name)} of the state dict is a {type(value).__name__}; a model file has named tensors "
                "only"
            )
        _check_ordinary(name, value, "the state dict")


def _is_safetensors(start: bytes) -> bool:
    """Whether ``start`` is eight bytes of header length, of which the upper ones are 0, then a JSON object."""
    return len(start) > 8 and start[8:9] == b"{" and start[5:8] == b"\0\0\0"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # otherwise ``start`` ends inside a character
            return False
        text = start[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _from_safetensors(path: Path) -> ModelFile:
    with reading(path):
        data = path.read_bytes()
    state = decode_state(data, path)
    metadata = header(data, path).get("__metadata__", {})
    try:
        names = json.loads(metadata.get("llpf_fast", "{}"))
    except (ValueError, RecursionError):
        names = {}
    if not state:
        raise LLPFError(f"{path} holds no tensors")
    return ModelFile(state, _name(names, "model_name"), _name(names, "dataset_name"), path)


def _name(content: Any, key: str) -> str | None:
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, str) else None


def _from_pickle(path: Path, start: bytes, key: str | None) -> ModelFile:
    if start.startswith(b"PK"):
        _check_archive(path)
    elif not start.startswith(_PICKLE):
        raise LLPFError(f"{path} is not a model file (.pt, .pth or .safetensors), or is damaged")
    try:
        # An open file: of a path, torch.load considers the suffix. torch's warnings about old formats are dropped.
        with open(path, "rb") as file, warnings.catch_warnings(), pickle_stand_ins():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LLPFError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except pickle.UnpicklingError as error:
        raise LLPFError(f"{path} {_why_not_loaded(str(error))}") from error
    except Exception as error:  # a damaged pickle can raise nearly any exception
        raise LLPFError(f"{path} is not a model file, or is damaged or cut off ({type(error).__name__})") from error
    state, extra = choose_state(content, path, key)
    return ModelFile(state, _name(content, "model_name"), _name(content, "dataset_name"), path, extra)


def _check_archive(path: Path) -> None:
    """torch.save's files are zip archives with an entry ``*/data.pkl``; TorchScript's also hold code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise LLPFError(f"{path} is damaged or cut off: its zip archive does not end as it should") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise LLPFError(f"{path} is a TorchScript program; save the state_dict() of torch.jit.load's result instead")
    if not any(name.endswith("/data.pkl") for name in names):
        raise LLPFError(f"{path} is a zip archive, but not one that torch.save wrote")


def _why_not_loaded(message: str) -> str:
    name = re.search(r"(?:GLOBAL |class |function )`?([A-Za-z_][\w.]*\.[\w.]*\w)", message)
    if name:
        return (
            f"holds Python objects or code ({name.group(1)}), which is never executed; save the model's state_dict() "
            "instead"
        )
    return "is a pickle, never executed, without a state dict, or is damaged or cut off"


def choose_state(
    content: Any, source: Path | str, key: str | None = None, no_tensors: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in ``content``, a checkpoint dictionary or a state dict itself: tensors, and other extra state.

    Args:
        source: the name of ``content`` in messages.
        key: as in ``load_model_file``.
        no_tensors: names of entries that may be no tensors, besides those of ``get_extra_state``.

    Raises:
        LLPFError: no state dict; several; entries that are no tensors, or tensors that are not ordinary ones.
    """
    if isinstance(content, Tensor):
        raise LLPFError(f"{source} holds one tensor without a name, not a state dict")
    if not isinstance(content, Mapping):
        raise LLPFError(f"{source} holds a {type(content).__name__}, not a state dict")
    state = _choose_state(content, source) if key is None else content.get(key)
    if not isinstance(state, Mapping):
        raise LLPFError(f"{source} has no state dict under {key!r} (it has {_keys(content)})")
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise LLPFError(f"{source} is a dictionary without tensors (it has {_keys(content)}), not a state dict")
    tensors, extra = {}, {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            _check_ordinary(name, value, source)
            tensors[name] = value.detach()
        elif isinstance(name, str) and (is_extra_state(name) or name in no_tensors):
            extra[name] = value
        else:
            raise LLPFError(
                f"{source}: entry {name!r} is a {type(value).__name__}, a state dict has named tensors only"
            )
    return tensors, extra


def _check_ordinary(name: str, value: Tensor, source: Path | str) -> None:
    if is_lazy(value):
        raise LLPFError(f"{source}: {name!r} is lazy and has no shape yet; run one batch through the module first")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise LLPFError(f"{source}: tensor {name!r} is sparse, quantized or without values; save it dense")
    if type(value.data) is not Tensor:
        raise LLPFError(
            f"{source}: tensor {name!r} is a {type(value.data).__name__}; save it as an ordinary tensor, whole, in one "
            "process"
        )


def _choose_state(content: Mapping[Any, Any], source: Path | str) -> Mapping[Any, Any]:
    """The state dict under a usual key, or the only one in ``content``; otherwise ``content`` itself."""
    for known in _STATE_KEYS:
        state = content.get(known)
        if isinstance(state, Mapping):
            return state
    inside = {
        name: value
        for name, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())
        if all(isinstance(tensor, Tensor) or is_extra_state(str(inner)) for inner, tensor in value.items())
    }
    if not inside or any(isinstance(value, Tensor) for value in content.values()):
        return content
    names = " and ".join(repr(name) for name in list(inside)[:5])
    if all(is_averaged(str(name)) for name in inside):
        raise LLPFError(
            f"{source} holds averaged weights only (under {names}); pass key= to load them, or save them as a "
            "state dict"
        )
    if len(inside) > 1:
        raise LLPFError(
            f"{source} holds several state dicts (under {names}); pass key=, or save the one you mean alone"
        )
    return next(iter(inside.values()))


def _keys(content: Mapping[Any, Any]) -> str:
    return ", ".join(shown(key)[1:-1] if isinstance(key, str) else shown(key) for key in list(content)[:5]) or "nothing"
