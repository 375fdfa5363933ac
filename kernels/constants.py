"""The integers of the ops as compile-time constants, which Triton needs of every global that a kernel uses."""

from __future__ import annotations

import triton.language as tl

from llpf_fast.modes import Destination
from llpf_fast.ops import loss_gate
from llpf_fast.ops.flags import SegmentFlag

MASKED = tl.constexpr(int(SegmentFlag.MASKED))
HOLD = tl.constexpr(int(SegmentFlag.HOLD))
COMPENSATE = tl.constexpr(int(SegmentFlag.COMPENSATE))
TWICE = tl.constexpr(int(SegmentFlag.TWICE))
FREE = tl.constexpr(int(SegmentFlag.FREE))
FROZEN = tl.constexpr(int(SegmentFlag.FROZEN))

POINT = tl.constexpr(int(Destination.POINT))
INFINITY = tl.constexpr(int(Destination.INFINITY))
MEAN = tl.constexpr(int(Destination.MEAN))
VARIANCE_SPHERE = tl.constexpr(int(Destination.VARIANCE_SPHERE))
NORM_SPHERE = tl.constexpr(int(Destination.NORM_SPHERE))

STEPS = tl.constexpr(loss_gate.STEPS)
MOST_STEPS = tl.constexpr(loss_gate.MOST_STEPS)
