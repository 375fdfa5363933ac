"""Names of tensors as wrappers change them: from what a file calls them to what the architecture calls them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import LLPFError

Value = TypeVar("Value")

#: Attributes that torch's own wrappers add wherever they wrap: torch.compile, FSDP, activation checkpointing. No
#: module of a user's is called so.
_RESERVED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: Attributes that wrap a whole network: DataParallel and DistributedDataParallel (``module``), Lightning modules by
#: custom (``model``, ``net``, ``network``), Lightning Fabric and DeepSpeed (``_forward_module``).
_WRAPPERS = ("module.", "model.", "net.", "network.", "_forward_module.")
#: What says that weights are a running average of those that were trained.
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow|teacher|n_averaged)([._\d]|$)", re.IGNORECASE)
_SHOWN = 3


def is_averaged(name: str) -> bool:
    """Whether ``name``, of a tensor or of a checkpoint's entry, says that it belongs to averaged weights (EMA, SWA)."""
    return _AVERAGED.search(name) is not None


def is_extra_state(name: str) -> bool:
    """Whether a ``state_dict`` entry comes from a module's ``get_extra_state``."""
    return name.rpartition(".")[2] == "_extra_state"


def fit_names(
    found: Mapping[str, Value],
    expected: Collection[str],
    source: Path | str,
    *,
    tied: Sequence[Collection[str]] = (),
    optional: Collection[str] = (),
) -> dict[str, Value]:
    """``found`` under the names of the architecture, whose tensors are called ``expected``.

    Names that agree already stay. Otherwise what wrappers put before or between names is left out on both sides
    (``_orig_mod.`` of torch.compile anywhere; ``module.``, ``model.``, ``net.`` ... where *every* name begins so), and
    this counts only when the names are then exactly the expected ones. Where no such reading fits, the names come back
    as they were, for ``compare_architectures`` to say what differs.

    Args:
        expected: the names, or the tensors by name: then a network is only taken for the expected one where shapes fit.
        tied: groups of expected names that stand for one tensor: one name of a group will do.
        optional: expected names that need not be there.

    Raises:
        LLPFError: naming ``source``, when it holds the expected network under one prefix beside other tensors (a second
            network, averaged weights, metrics): which of them is meant is not ours to guess.
    """
    if found.keys() == set(expected):
        return dict(found)
    wanted_forms = list(_forms(expected))
    for ours in _forms(found):
        for wanted in wanted_forms:
            if ours.keys() == wanted.keys():
                return {wanted[short]: found[name] for short, name in ours.items()}
    for ours in _forms(found) if tied or optional else ():
        for wanted in wanted_forms:
            if ours.keys() <= wanted.keys():
                fitted = {wanted[short]: found[name] for short, name in ours.items()}
                there = {*fitted, *optional}.union(*(group for group in tied if not fitted.keys().isdisjoint(group)))
                if there >= set(expected):
                    return fitted
    _refuse_mixture(found, expected, source)
    return dict(found)


def _forms(names: Collection[str]) -> Iterator[dict[str, str]]:
    """Readings of ``names``, each as short name -> name: as they are, without reserved attributes, without wrappers."""
    form = {name: name for name in names}
    yield form
    for cut in (_without_reserved, _without_wrapper):
        while (shorter := cut(form)) is not None:
            form = shorter
            yield form


def _without_reserved(form: dict[str, str]) -> dict[str, str] | None:
    shorter = {}
    for short, name in form.items():
        for attribute in _RESERVED:
            short = re.sub(rf"(^|(?<=\.)){re.escape(attribute)}", "", short)
        shorter[short] = name
    # Two names that become one are two tensors: then it was no wrapper.
    return shorter if len(shorter) == len(form) and shorter.keys() != form.keys() else None


def _without_wrapper(form: dict[str, str]) -> dict[str, str] | None:
    for wrapper in _WRAPPERS:
        if form and all(short.startswith(wrapper) and len(short) > len(wrapper) for short in form):
            return {short.removeprefix(wrapper): name for short, name in form.items()}
    return None


def _is_there(name: str, wanted: str, found: Mapping[str, Value], expected: Collection[str]) -> bool:
    """Whether ``found`` has ``name``; of the shape of ``wanted``, where both sides are tensors."""
    if name not in found:
        return False
    like = getattr(expected[wanted], "shape", None) if isinstance(expected, Mapping) else None
    return like is None or getattr(found[name], "shape", like) == like


def _refuse_mixture(found: Mapping[str, Value], expected: Collection[str], source: Path | str) -> None:
    first = next(iter(expected), "")
    prefixes = [name.removesuffix(first) for name in found if name.endswith(first)]
    whole = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    whole = [prefix for prefix in whole if all(_is_there(prefix + name, name, found, expected) for name in expected)]
    rest = [name for name in found if not any(name.startswith(prefix) for prefix in whole)] if all(whole) else []
    if len(whole) == 1 and whole[0] and rest:
        parts = Counter(name.split(".", 1)[0] for name in rest)
        said = ", ".join(f"{count} under {part!r}" for part, count in list(parts.items())[:_SHOWN])
        averaged = " (averaged weights)" if any(map(is_averaged, rest)) else ""
        raise LLPFError(
            f"{source} holds the network under {whole[0].rstrip('.')!r} and other tensors beside it: {said}{averaged}; "
            f"save those that begin with {whole[0]!r} alone"
        )
    if len(whole) > 1:
        said = " and ".join(repr(prefix.rstrip(".")) if prefix else "no prefix" for prefix in whole[:_SHOWN])
        raise LLPFError(
            f"{source} holds {len(whole)} networks of the expected architecture (under {said}); save the one you mean"
        )
