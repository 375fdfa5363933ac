"""The integers of ``llpf_fast/ops/flags.py`` as compile-time constants; ``tests/ops/test_flags.py`` compares them."""

from __future__ import annotations

import triton.language as tl

MASKED = tl.constexpr(1)
HOLD = tl.constexpr(2)
COMPENSATE = tl.constexpr(4)
TWICE = tl.constexpr(8)
FREE = tl.constexpr(16)
FROZEN = tl.constexpr(32)

POINT = tl.constexpr(0)
ORIGIN = tl.constexpr(1)
INFINITY = tl.constexpr(2)
MEAN = tl.constexpr(3)
VARIANCE_SPHERE = tl.constexpr(4)
NORM_SPHERE = tl.constexpr(5)

#: What float64 counts to without a gap (``llpf_fast/ops/loss_gate.py``).
MOST_ROUNDS = tl.constexpr(2.0**53)
