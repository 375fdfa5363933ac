"""Whether a run goes on as it began: the same settings, task and environment."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import LLPFError
from ..ops.info import describe


def restore_environment(recorded: dict[str, Any], device: torch.device, parallel: int = 1) -> None:
    """Restore the thread count; warn about every other difference, because the bits may then differ."""
    if recorded.get("threads"):
        torch.set_num_threads(int(recorded["threads"]))
    now = describe(device, parallel)
    recorded, now = {"together": 1, **recorded}, {"together": 1, **now}
    changed = [
        f"{key} was {recorded[key]!r}, is {now[key]!r}" for key in now if recorded.get(key, now[key]) != now[key]
    ]
    if changed:
        warnings.warn(
            "resuming in another environment, so the rest of the path need not be bit-identical to an "
            "uninterrupted run: " + "; ".join(changed),
            stacklevel=3,
        )


#: Settings of the correction that change the last bits, not the search.
_ARITHMETIC = ("precision", "channels_last", "compile")
#: Settings of the correction that change no bit.
_NEUTRAL = ("cuda_graph",)


def check_same_search(recorded: dict[str, Any] | None, now: dict[str, Any], folder: object) -> None:
    """Warn where only the arithmetic of the correction changed.

    Raises:
        LLPFError: any other setting differs.
    """
    recorded = recorded or {}
    before, after = dict(recorded.get("correction") or {}), dict(now["correction"])
    changed = []
    for key in _ARITHMETIC:
        was, is_ = before.pop(key, None), after.pop(key)
        if was != is_:
            changed.append(f"correction.{key} was {was}, is {is_}")
    for key in _NEUTRAL:
        before.pop(key, None)
        after.pop(key)
    if {**recorded, "correction": before} != {**now, "correction": after}:
        raise LLPFError(f"cannot resume {folder}: its settings differ from those given now")
    if changed:
        warnings.warn(
            "the rest of the path will not be bit-identical to an uninterrupted run: " + "; ".join(changed),
            stacklevel=3,
        )


def check_same_task(recorded: Any, now: dict[str, Any], folder: object, what: str = "resume") -> None:
    """Compare loss and data with those that the run was begun with; what was not recorded is not compared.

    Warns where they may differ: code that has changed, or data that may change from one pass to the next.

    Args:
        what: what cannot be done with the run in ``folder`` where they differ, for the message.

    Raises:
        LLPFError: another loss; tensors with other values; another number of samples.
    """
    recorded = recorded if isinstance(recorded, dict) else {}
    loss, now_loss = recorded.get("loss") or {}, now.get("loss") or {}
    if loss and now_loss:
        if loss.get("name") != now_loss.get("name") or ("sha256" in loss) != ("sha256" in now_loss):
            raise LLPFError(f"cannot {what} {folder}: its loss is {_loss(loss)}, not {_loss(now_loss)}")
        if None not in (loss.get("sha256"), now_loss.get("sha256")) and loss["sha256"] != now_loss["sha256"]:
            warnings.warn(
                f"the code of the loss {loss['name']} has changed since {folder} was begun; its values may too",
                stacklevel=3,
            )
    data, now_data = recorded.get("data") or {}, now.get("data") or {}
    if not data or not now_data:
        return
    counts = [(each.get("samples") or each.get("dataset"), each.get("digest_of")) for each in (data, now_data)]
    same = any(data.get(key) == now_data.get(key) for key in ("sha256", "set_sha256"))
    if data.get("in_memory") and now_data.get("in_memory"):
        # The order counts: batches are drawn by index.
        same = data.get("sha256") == now_data.get("sha256")
    elif counts[0] == counts[1]:
        if not same:
            warnings.warn(
                f"the training data are not those that {folder} was begun with, or change from one pass to the next",
                stacklevel=3,
            )
        return
    if not same:
        raise LLPFError(
            f"cannot {what} {folder}: its training data differ from those given now ({data.get('digest_of')} and "
            f"{now_data.get('digest_of')} samples)"
        )


def _loss(identity: dict[str, Any]) -> str:
    return f"{identity.get('name')}{' (your code)' if 'sha256' in identity else ''}"
