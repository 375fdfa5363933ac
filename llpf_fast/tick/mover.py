"""``Mover``: everything a tick needs, prepared once, so that one tick is one op call without allocation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..flat import SegmentTable
from ..ops import Destination, SegmentFlag


class Mover:
    """Moves a flat buffer toward a destination and keeps it on variance spheres.

    Args:
        table: segments of the buffer; its device is the buffer's.
        target_variance: float64 ``[S]``, see :func:`llpf_fast.ops.coefficients`. Read at every tick: change it in
            place to let the spheres grow or shrink along the way.
        destination: ``[N]`` buffer for ``kind`` POINT, else ``None``.
        radius: float64 ``[S]`` for the sphere destinations, else ``None``.
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
        radius: Tensor | None = None,
        fixed: float,
        relative: float,
        combine_sum: bool = True,
        clamp: bool = True,
        epsilon: float = 0.0,
    ) -> None:
        self.table = table
        self.destination = destination
        self.kind = kind
        self.radius = radius
        self.target_variance = target_variance
        self.step = torch.tensor([fixed, relative], dtype=torch.float64, device=table.device)
        self._rule = {
            "destination": int(kind),
            "epsilon": epsilon,
            "combine_sum": combine_sum,
            "clamp": clamp,
        }
        self._lengths = fixed, relative
        #: What ``step`` holds, for the host.
        self.lengths = [fixed, relative]
        self._stay = torch.zeros(2, dtype=torch.float64, device=table.device)
        self._whole = torch.tensor([0.0, 1.0], dtype=torch.float64, device=table.device)
        self._scratch = table.scratch()
        self._masked = _masked(table)

    def set_flags(self, flags: Sequence[SegmentFlag]) -> None:
        """Change which segments move; lengths and groups stay."""
        self.table = self.table.with_flags(flags)
        self._masked = _masked(self.table)

    def set_pace(self, scale: float) -> None:
        """Both lengths of the step times ``scale``; a share of more than the whole distance makes no sense."""
        fixed, relative = self._lengths
        self.lengths = [fixed * scale, min(relative * scale, 1.0)]
        for place, length in zip(self.step, self.lengths, strict=True):
            place.fill_(length)  # a copy from the host's memory would wait for a GPU

    def tick(
        self, p: Tensor, *, project_first: bool, waypoint: Tensor | None = None, moments: Tensor | None = None
    ) -> None:
        """Project (where ``project_first``), move, project: p ``[N]`` in place; ``waypoint`` receives P.

        ``moments`` are those of p as it is, float64 ``[S, 5]``, where the caller has them: the tick then reads p and
        the destination once instead of twice.
        """
        if moments is not None:
            # Groups are summed over all of their members: what is masked must not count.
            moments = moments.masked_fill(self._masked, 0.0)
        self._tick(p, self.step, project_first, waypoint, moments)

    def project(self, p: Tensor) -> None:
        """Put p back on its spheres without a move."""
        self._tick(p, self._stay, False, None)

    def arrive(self, p: Tensor) -> None:
        """The whole rest of the way in one step, p ``[N]`` in place."""
        self._tick(p, self._whole, False, None)

    def _tick(
        self, p: Tensor, step: Tensor, project_first: bool, waypoint: Tensor | None, moments: Tensor | None = None
    ) -> None:
        torch.ops.llpf_fast.tick_.default(
            p,
            self.destination,
            self.table.segments,
            self.table.chunks,
            self.target_variance,
            step,
            None,
            self.radius,
            moments,
            waypoint,
            self._scratch,
            **self._rule,
            project_first=project_first,
        )

    def moments(self, p: Tensor) -> Tensor:
        """float64 ``[S, 5]`` of p ``[N]`` toward the destination; 0 where MASKED."""
        return ops.moments(p, self.destination, self.table.segments, self.table.chunks, self._scratch)


def _masked(table: SegmentTable) -> Tensor:
    """bool ``[S, 1]`` on the table's device."""
    return (table.segments[:, 4:] & int(SegmentFlag.MASKED)) != 0
