"""Bit flags of a segment: the integers that Python, C++, CUDA and Triton share.

``csrc/core/table.h`` repeats them, which ``tests/ops/test_flags.py`` checks; ``kernels/constants.py`` is computed from
them.
"""

from __future__ import annotations

from enum import IntFlag


class SegmentFlag(IntFlag):
    """What may happen to a segment (column 4 of the segment table)."""

    NONE = 0
    #: Neither read nor written by moments, affine_ and tick_. Still trained by sgd_.
    MASKED = 1
    #: Not moved (t = 0) but still projected: the authors' "skipped layers are rescaled anyway".
    HOLD = 2
    #: Moves away from the destination by the same fraction (-t).
    COMPENSATE = 4
    #: With COMPENSATE: moves away twice as far (-2t).
    TWICE = 8
    #: Moved but never projected (s = 1): normalization layers, one-element tensors.
    FREE = 16
    #: Neither read nor written by sgd_ (requires_grad=False).
    FROZEN = 32
