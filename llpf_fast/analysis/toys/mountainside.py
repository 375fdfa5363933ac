"""The mountainside and the ridge: why runs that part late end up connected, in a landscape of two parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import LLPFError
from .landscape import Landscape


class Mountainside(Landscape):
    """L(x, y) = slope y^2 / 2 + ridge (x^2 - 1)^2 / 4: a descent in y along a ridge at x = 0 with a valley either side.

    A toy of ours for the picture of arXiv 2406.16300 (the paper's own is not known to us). Runs start high on the
    ridge, (x0, y0) with a small x0 > 0, and follow the negative gradient. Whoever comes down stays on his side of the
    ridge. Two runs that part at time T by a kick of +-noise in x end on different sides, with the ridge between them,
    when the common descent has not yet led farther from the ridge line than the kick; otherwise in the same valley.
    """

    def __init__(
        self,
        x: float = 0.0,
        y: float = 1.0,
        *,
        slope: float = 1.0,
        ridge: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if slope <= 0 or ridge <= 0:
            raise LLPFError(f"slope and ridge must be above 0, got {slope} and {ridge}")
        self.slope, self.ridge = slope, ridge
        self.x = nn.Parameter(torch.tensor([x], dtype=dtype))
        self.y = nn.Parameter(torch.tensor([y], dtype=dtype))

    def value(self) -> Tensor:
        return (self.slope * self.y**2 / 2 + self.ridge * (self.x**2 - 1) ** 2 / 4).sum()

    def descend(self, x: float, y: float, time: float) -> tuple[float, float]:
        """Where gradient flow from (x, y) is after ``time``, exact.

        y decays as exp(-slope t); z = x^2 obeys z' = 2 ridge z (1 - z), the logistic equation.
        """
        if x == 0:
            return 0.0, y * math.exp(-self.slope * time)
        x_end = math.copysign(1 / math.sqrt(1 + (1 / x**2 - 1) * math.exp(-2 * self.ridge * time)), x)
        return x_end, y * math.exp(-self.slope * time)

    def split_runs(
        self, x: float, y: float, split: float, noise: float, total: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where two runs are at time ``total`` that descend together until ``split`` and then part by +-``noise``."""
        here, there = self.descend(x, y, split)
        return (
            self.descend(here + noise, there, total - split),
            self.descend(here - noise, there, total - split),
        )

    def latest_instability(self, x: float, noise: float) -> float:
        """The split time below which the two runs end on different sides: where the common descent passes ``noise``.

        ln(noise^2 (1 - x^2) / (x^2 (1 - noise^2))) / (2 ridge), from the logistic equation; 0 < x, noise < 1.
        """
        if not (0 < x < 1 and 0 < noise < 1):
            raise LLPFError(f"x and noise must lie between 0 and 1, got {x} and {noise}")
        return math.log(noise**2 * (1 - x**2) / (x**2 * (1 - noise**2))) / (2 * self.ridge)

    def line_loss(self, a: tuple[float, float], b: tuple[float, float], fraction: float) -> float:
        """The loss at ``fraction`` of the straight line from a = (x, y) to b."""
        x, y = (p + fraction * (q - p) for p, q in zip(a, b, strict=True))
        return self.slope * y**2 / 2 + self.ridge * (x**2 - 1) ** 2 / 4

    def barrier_between_valleys(self) -> float:
        """ridge / 4: of the line between (1, 0) and (-1, 0), and the least that any path between them must climb."""
        return self.ridge / 4
