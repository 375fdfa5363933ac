"""Variances, norms and distances of groups of segments, on the device, from their moments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flat import SegmentTable
from ..ops import Destination


class Groups:
    """Sums over the members of each group, given to every member.

    What needs the host is computed at construction, so that :meth:`sum` never waits for the device.

    Args:
        labels: int64 ``[S]``; members of one group are neighbours.
    """

    def __init__(self, labels: Tensor) -> None:
        unique, self._member = torch.unique_consecutive(labels, return_inverse=True)
        self._count = len(unique)

    def sum(self, value: Tensor) -> Tensor:
        """float64 ``[S]``: each group's sum of ``value [S]``."""
        total = torch.zeros(self._count, dtype=value.dtype, device=value.device)
        return total.index_add_(0, self._member, value)[self._member]


class GroupStatistics:
    """Pooled statistics over the variance groups of ``table``, distances over its distance groups (Chan's formula).

    Every method takes moments ``[S, 5]`` of the buffer (:func:`llpf_fast.ops.moments`) and returns float64 ``[S]``,
    in which the members of a group have the group's value.

    Attributes:
        count: float64 ``[S]``: elements of each segment.
    """

    def __init__(self, table: SegmentTable) -> None:
        self.count = table.segments[:, 1].double()
        self._variance_groups, self._distance_groups = Groups(table.segments[:, 3]), Groups(table.segments[:, 2])
        self._group_count = self._variance_groups.sum(self.count)

    def variance(self, moments: Tensor) -> Tensor:
        """Unbiased variance; 0 for one element."""
        n = self._group_count
        return torch.where(n > 1, self._about_mean(moments) / (n - 1).clamp(min=1), 0.0)

    def norm(self, moments: Tensor) -> Tensor:
        """L2 norm."""
        return self._variance_groups.sum(moments[:, 2] + self.count * moments[:, 0] ** 2).sqrt()

    def distance(self, moments: Tensor, kind: Destination, radius: Tensor | None) -> Tensor:
        """L2 distance of each distance group to its destination; the norm for INFINITY, which has no distance.

        ``radius``: float64 ``[S]`` for the sphere destinations, else ``None``.
        """
        if kind is Destination.POINT:
            squared = moments[:, 4] + self.count * moments[:, 1] ** 2
        elif kind is Destination.MEAN:
            squared = moments[:, 2]
        elif kind is Destination.VARIANCE_SPHERE:
            assert radius is not None
            now = self.variance(moments)
            ratio = torch.where(now > 0, (radius / now).sqrt(), 1.0)
            squared = self._about_mean(moments) * (ratio - 1) ** 2 * self._share()
        elif kind is Destination.NORM_SPHERE:
            assert radius is not None
            squared = (self.norm(moments) - radius) ** 2 * self._share()
        else:
            assert kind in (Destination.ORIGIN, Destination.INFINITY), kind
            squared = moments[:, 2] + self.count * moments[:, 0] ** 2
        return self._distance_groups.sum(squared).sqrt()

    def _about_mean(self, moments: Tensor) -> Tensor:
        """Sum of squared deviations from the mean of each variance group."""
        mean = self._variance_groups.sum(self.count * moments[:, 0]) / self._group_count
        return self._variance_groups.sum(moments[:, 2] + self.count * (moments[:, 0] - mean) ** 2)

    def _share(self) -> Tensor:
        """Each segment's share of the elements of its variance group."""
        return self.count / self._group_count
