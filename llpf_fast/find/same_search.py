"""Whether the settings given now are those of the run that is to be continued."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from ..errors import LLPFError
from .settings import LayerSettings

#: How the passes are computed, and how before runs recorded it: another choice changes the last bits, not the search.
_ARITHMETIC = {"precision": "float32", "channels_last": False, "compile": False}
#: Without influence on a bit.
_NEUTRAL = ("capture",)
#: Settings that came later, and what runs before them had.
_LATER = {"optimizer": "", "is_norm": "", "statistics": "stored", "evaluation_batch_size": 0}


def all_settings(recorded: dict[str, Any] | None) -> dict[str, Any]:
    """The settings of a run, with those that did not exist when it was begun."""
    known = {**_LATER, **(recorded or {})}
    if isinstance(known.get("layers"), dict):
        known["layers"] = {**asdict(LayerSettings()), **known["layers"]}
    return known


def check_same_search(recorded: dict[str, Any] | None, now: dict[str, Any], folder: object) -> None:
    """Warn where only the arithmetic of the correction changed.

    Raises:
        LLPFError: any other setting differs.
    """
    recorded = all_settings(recorded)
    theirs, ours = dict(recorded.get("correction") or {}), dict(now["correction"])
    changed = []
    for key, default in _ARITHMETIC.items():
        was, is_ = theirs.pop(key, default), ours.pop(key)
        if was != is_:
            changed.append(f"correction.{key} was {was}, is {is_}")
    for key in _NEUTRAL:
        theirs.pop(key, None)
        ours.pop(key)
    if {**recorded, "correction": theirs} != {**now, "correction": ours}:
        raise LLPFError(f"cannot resume {folder}: its settings differ from those given now")
    if changed:
        warnings.warn(
            "the rest of the path will not be bit-identical to an uninterrupted run: " + "; ".join(changed),
            stacklevel=3,
        )


def check_same_task(recorded: Any, now: dict[str, Any], folder: object) -> None:
    """LLPFError where loss or data are not those that the run was begun with; what was not recorded is not compared."""
    recorded = recorded if isinstance(recorded, dict) else {}
    loss, own = recorded.get("loss") or {}, now.get("loss") or {}
    if loss and own and loss.get("name") != own.get("name"):
        raise LLPFError(f"cannot resume {folder}: its loss is {loss.get('name')}, not {own.get('name')}")
    data, ours = recorded.get("data") or {}, now.get("data") or {}
    same_part = data.get("digest_of") == ours.get("digest_of")
    # A shuffling loader gives other samples each time; only samples in memory are compared.
    if data.get("form") == ours.get("form") == "samples" and not (
        same_part and data.get("sha256") == ours.get("sha256")
    ):
        raise LLPFError(
            f"cannot resume {folder}: its training data differ from those given now ({data.get('digest_of')} and "
            f"{ours.get('digest_of')} samples)"
        )
