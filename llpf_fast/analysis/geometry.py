"""Where networks lie to each other: distances, angles, cosines, seen from the origin or from a base point."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Two points seen from a third (the origin, or a base point such as the network that both were trained from).

    ``distance`` between the two; ``radius_1``, ``radius_2`` from the base, all L2 in units of the parameters;
    ``cosine`` and ``angle`` (degrees, 0..180) at the base, NaN where a radius is 0.
    """

    distance: float
    radius_1: float
    radius_2: float
    cosine: float
    angle: float


def geometry(first: Tensor, second: Tensor, base: Tensor | None = None) -> Geometry:
    """Of two vectors ``[P]``, computed in float64; ``base [P]`` is the origin when missing.

    The angle is 2 atan2(|u - v|, |u + v|) of the unit vectors u, v (Kahan): exact near 0 and 180 degrees too, where
    acos of the cosine loses half the digits.
    """
    a, b = first.double(), second.double()
    if base is not None:
        a, b = a - base.double(), b - base.double()
    distance, radius_1, radius_2 = (float(v.norm()) for v in (a - b, a, b))
    if radius_1 == 0 or radius_2 == 0:
        return Geometry(distance, radius_1, radius_2, math.nan, math.nan)
    u, v = a / radius_1, b / radius_2
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    return Geometry(distance, radius_1, radius_2, float(u @ v), math.degrees(angle))
