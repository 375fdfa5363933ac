"""Variances and distances of segments, on the device, from their moments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flat import SegmentTable
from ..ops import Destination


class Groups:
    """Sums over the members of each group, handed back to every member. Prepared once: no host synchronisation later.

    ``labels`` is int64 ``[S]``; members of one group are neighbours.
    """

    def __init__(self, labels: Tensor) -> None:
        names, self._member = torch.unique_consecutive(labels, return_inverse=True)
        self._count = len(names)

    def sum(self, value: Tensor) -> Tensor:
        """float64 ``[S]``: each group's sum of ``value [S]``."""
        total = torch.zeros(self._count, dtype=value.dtype, device=value.device)
        return total.index_add_(0, self._member, value)[self._member]


class GroupStatistics:
    """Pooled statistics over the variance groups of ``table`` and distances over its distance groups (Chan's formula).

    Every method takes moments ``[S, 5]`` of the buffer (:func:`llpf_fast.ops.moments`) and returns float64 ``[S]``
    in which the members of a group hold the group's value.
    """

    def __init__(self, table: SegmentTable) -> None:
        self.count = table.segments[:, 1].double()
        self._sphere, self._way = Groups(table.segments[:, 3]), Groups(table.segments[:, 2])
        self._group_count = self._sphere.sum(self.count)

    def variance(self, moments: Tensor) -> Tensor:
        """Unbiased variance; 0 for one element."""
        n = self._group_count
        return torch.where(n > 1, self._about_mean(moments) / (n - 1).clamp(min=1), 0.0)

    def norm(self, moments: Tensor) -> Tensor:
        """L2 norm."""
        return self._sphere.sum(moments[:, 2] + self.count * moments[:, 0] ** 2).sqrt()

    def distance(self, moments: Tensor, kind: Destination, radius: Tensor | None) -> Tensor:
        """L2 distance of each distance group to its destination; for INFINITY, which has none, the norm."""
        if kind is Destination.POINT:
            squared = moments[:, 4] + self.count * moments[:, 1] ** 2
        elif kind is Destination.MEAN:
            squared = moments[:, 2]
        elif kind is Destination.VARIANCE_SPHERE:
            assert radius is not None
            own = self.variance(moments)
            ratio = torch.where(own > 0, (radius / own).sqrt(), 1.0)
            squared = self._about_mean(moments) * (ratio - 1) ** 2 * self._share()
        elif kind is Destination.NORM_SPHERE:
            assert radius is not None
            squared = (self.norm(moments) - radius) ** 2 * self._share()
        else:
            squared = moments[:, 2] + self.count * moments[:, 0] ** 2
        return self._way.sum(squared).sqrt()

    def _about_mean(self, moments: Tensor) -> Tensor:
        mean = self._sphere.sum(self.count * moments[:, 0]) / self._group_count
        return self._sphere.sum(moments[:, 2] + self.count * (moments[:, 0] - mean) ** 2)

    def _share(self) -> Tensor:
        return self.count / self._group_count
