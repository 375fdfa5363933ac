"""``PointAverage``: the mean of a correction's points, which has a lower loss than the last of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..correct import Corrected


class PointAverage:
    """Running mean of points and their losses, later ones weighing more (polynomial-decay averaging, arXiv 1212.1824).

    Of points 1 to k and with ``power`` e the newest one gets the share (e + 1) / (k + e): about the last 1 / (e + 1) of
    them count, however long a correction becomes. Gradient descent at a constant rate wanders around where it is
    going; the mean lies nearer. Memory: one buffer ``[N]``, and none where ``power`` is None.
    """

    def __init__(self, like: Tensor, power: float | None) -> None:
        self._power = 0.0 if power is None else power
        self._count = 0
        #: ``[N]``; None where nothing is averaged.
        self.values = None if power is None else torch.zeros_like(like)
        self._loss = 0.0

    def clear(self) -> None:
        """Begin anew: the next point counts alone."""
        self._count = 0

    @torch.no_grad()
    def add(self, point: Tensor, corrected: Corrected, threshold: float) -> Corrected:
        """Take in ``point [N]``, which ``corrected`` has led to; that, with the mean loss of all and its verdict."""
        assert self.values is not None
        self._count += 1
        share = (self._power + 1) / (self._count + self._power)
        if self._count == 1:
            self.values.copy_(point)
            self._loss = corrected.loss
        else:
            self.values.lerp_(point, share)
            self._loss += share * (corrected.loss - self._loss)
        return replace(corrected, loss=self._loss, met=self._loss <= threshold)
