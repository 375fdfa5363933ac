"""What a search asks of its driver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..types import StateDict


@dataclass(frozen=True)
class TrainRequest:
    """Asks for a correction from batch ``first_round`` of the stream on; the answer is a ``CorrectionResult``.

    ``continued`` and ``stop_at_nan`` as in :meth:`~llpf_fast.correct.Correction.run`, whose LLPFError is thrown in.
    """

    first_round: int
    continued: bool
    stop_at_nan: bool


@dataclass(frozen=True)
class EvalRequest:
    """Asks for the loss of ``values [N]`` on the screening set, with ``buffers``, or else the module's present ones.

    The answer may be the mean of the first samples where that is above ``stop_above``.
    """

    values: Tensor
    stop_above: float = math.inf
    buffers: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class ChordRequest:
    """Asks where on the chord from ``first`` to ``second`` the loss on the screening set may be above ``limit``.

    The answer is a fraction of the chord, to be evaluated, or None (:class:`~llpf_fast.find.chord.ChordCheck`). The
    EvalRequest before was of the fraction ``at``, and its loss at most ``limit``. The states may be views, of use until
    the answer.
    """

    first: StateDict
    second: StateDict
    at: float
    limit: float


#: Any of them.
Request = TrainRequest | EvalRequest | ChordRequest
