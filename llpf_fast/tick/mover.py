"""``Mover``: everything a tick needs, prepared once, so that one tick is one op call without allocation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..flat import SegmentTable
from ..ops import Destination, SegmentFlag


class Mover:
    """Moves a flat buffer toward a destination and keeps it on the variance spheres of the start.

    Args:
        table: segments of the buffer; its device is the buffer's.
        target_variance: float64 ``[S]``, see :func:`llpf_fast.ops.coefficients`.
        destination: ``[N]`` buffer for ``kind`` POINT, else ``None``.
        fixed, relative: the step's two lengths (units of the parameters; share of the distance).
        combine_sum, clamp, epsilon: see :func:`llpf_fast.ops.coefficients`.
    """

    def __init__(
        self,
        table: SegmentTable,
        target_variance: Tensor,
        destination: Tensor | None,
        *,
        kind: Destination = Destination.POINT,
        fixed: float,
        relative: float,
        combine_sum: bool = True,
        clamp: bool = True,
        epsilon: float = 0.0,
    ) -> None:
        self.table = table
        self.destination = destination
        self.kind = kind
        self.target_variance = target_variance
        self.step = torch.tensor([fixed, relative], dtype=torch.float64, device=table.device)
        self._rule = {
            "destination": int(kind),
            "epsilon": epsilon,
            "combine_sum": combine_sum,
            "clamp": clamp,
        }
        self._stay = torch.zeros(2, dtype=torch.float64, device=table.device)
        self._scratch = table.scratch()

    def set_flags(self, flags: Sequence[SegmentFlag]) -> None:
        """Change which segments move; lengths and groups stay."""
        self.table = self.table.with_flags(flags)

    def tick(self, p: Tensor, *, project_first: bool, waypoint: Tensor | None = None) -> None:
        """Project (where ``project_first``), move, project: p ``[N]`` in place; ``waypoint`` receives P."""
        self._tick(p, self.step, project_first, waypoint)

    def project(self, p: Tensor) -> None:
        """Put p back on its spheres without a move."""
        self._tick(p, self._stay, False, None)

    def _tick(self, p: Tensor, step: Tensor, project_first: bool, waypoint: Tensor | None) -> None:
        torch.ops.llpf_fast.tick_.default(
            p,
            self.destination,
            self.table.segments,
            self.table.chunks,
            self.target_variance,
            step,
            None,
            None,
            None,
            waypoint,
            self._scratch,
            **self._rule,
            project_first=project_first,
        )

    def squared_distances(self, p: Tensor) -> Tensor:
        """float64 ``[S]``: squared L2 distance of every segment to a POINT destination; 0 where MASKED."""
        moments = ops.moments(p, self.destination, self.table.segments, self.table.chunks, self._scratch)
        count = self.table.segments[:, 1].double()
        return moments[:, 4] + count * moments[:, 1] ** 2
