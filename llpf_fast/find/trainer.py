"""``Trainer``: what a search itself needs of the correction that is run for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Trainer(Protocol):
    """What a search itself needs of the correction that is run for it."""

    @property
    def momentum_buffer(self) -> Tensor | None:
        """``[N]``, where the correction has momentum."""

    @property
    def keeps_momentum(self) -> bool:
        """Whether that outlives a correction."""

    def scale_lr(self, scale: Tensor | None) -> None:
        """From now on the learning rate of every segment is the base times its factor, float64 ``[S]``."""
