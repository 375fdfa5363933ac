"""``Route``: one rule applied to one flat module that stands at its start, ready to tick."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import LLPFError
from ..flat import FlatParameters, LayerKind, SegmentTable
from ..ops import Destination, SegmentFlag
from .group_statistics import GroupStatistics
from .rule import LayerTreatment, Rule
from .segment_flags import chosen_treatments, flags, frozen, sphere_table, treatments

#: Relative difference of radii within which a layer counts as lying on its sphere: rounding of float32 values.
_ON_SPHERE = 1e-6


class Route:
    """Where a network goes and how: destination, spheres, flags and the learning-rate rule.

    Args:
        flat: holds the start's values now; its buffer is what :meth:`tick` is given later.
        rule: every switch of a tick.
        goal: ``[N]`` for the destination POINT, else ``None``.
        radius: float64 ``[S]`` for the sphere destinations: unbiased variance or L2 norm; NaN where a segment stays.
        fixed, relative: the step's two lengths (units of the parameters; share of the distance).

    Attributes:
        table: the segments, with the variance groups that the rule asks for.
        start_variance: float64 ``[S]``, the start's own, over each variance group of ``table``.

    Raises:
        LLPFError: a pattern of the rule that matches nothing; a sphere that a layer cannot have, or that a frozen one
            does not lie on.
    """

    def __init__(
        self,
        flat: FlatParameters,
        rule: Rule,
        goal: Tensor | None,
        radius: Tensor | None = None,
        *,
        fixed: float,
        relative: float,
    ) -> None:
        self.flat, self.rule = flat, rule
        self.table = table = sphere_table(rule, flat)
        self._scratch = table.scratch()
        self.spread = GroupStatistics(table)
        moments = self._moments(flat.data, None)
        self.start_variance = self.spread.variance(moments)
        # Learning rates follow the whole tensor: what trains is not what moves.
        self._tensors = GroupStatistics(flat.table)
        self._tensor_variance = self._tensors.variance(moments)
        self._treatment = treatments(rule, flat)
        still = frozen(rule, flat)
        _, size = torch.unique_consecutive(flat.table.segments[:, 2], return_counts=True)
        #: float64 ``[S]``: members of each segment's distance group. Kept: asking for it would wait for the device.
        self._members = size.double().repeat_interleave(size)
        self._frozen = torch.tensor(still, dtype=torch.bool, device=flat.data.device)
        self._stays = [False] * len(table) if radius is None else radius.isnan().tolist()
        if radius is not None:
            self._check_frozen(radius, moments, still)
            self._check_radius(radius)
            radius = radius.nan_to_num(0.0).masked_fill(self._frozen, 0.0)
        self.mover = Mover(
            table,
            self.start_variance.clone(),
            goal,
            kind=rule.destination,
            radius=radius,
            fixed=fixed,
            relative=relative,
            combine_sum=rule.combine_sum,
            clamp=rule.clamp,
            epsilon=rule.epsilon,
        )
        self._trained_evenly = self._evenly()
        self.initial_distance = self.distances(flat.data)
        self._coming: list[SegmentFlag] | None = None
        self._entered = False
        self.mover.set_flags(self._flags([True] * len(table)))

    def _moments(self, p: Tensor, goal: Tensor | None) -> Tensor:
        table = self.flat.table
        return ops.moments(p, goal, table.segments, table.chunks, self._scratch)

    def _check_frozen(self, radius: Tensor, moments: Tensor, still: Sequence[bool]) -> None:
        """A frozen layer has to lie on its sphere already, unless it is left out by name or kind."""
        own = self.start_variance if self.rule.destination is Destination.VARIANCE_SPHERE else self.spread.norm(moments)
        left_out = [how is LayerTreatment.KEEP for how in chosen_treatments(self.rule, self.flat)]
        for i, row in enumerate(self.flat.table.rows):
            target = float(radius[i])
            if not still[i] or left_out[i] or self._stays[i]:
                continue
            if abs(float(own[i]) - target) > _ON_SPHERE * max(float(own[i]), target):
                raise LLPFError(
                    f"layer {row.name} is frozen (requires_grad=False) and does not lie on its sphere, so it would "
                    "never arrive: set layers.move_frozen: true, or leave it out with layers.keep"
                )

    def _check_radius(self, radius: Tensor) -> None:
        own = self.start_variance if self.rule.destination is Destination.VARIANCE_SPHERE else None
        what = "variance" if own is not None else "norm"
        for i, (row, target) in enumerate(zip(self.flat.table.rows, radius.tolist(), strict=True)):
            if self._stays[i] or self._treatment[i] is LayerTreatment.KEEP:
                continue
            if target <= 0:
                raise LLPFError(
                    f"the sphere of layer {row.name} has {what} {target:g}; it must be positive: "
                    f"give another number, or leave the layer out with layers.keep"
                )
            if own is not None and row.length > 1 and float(own[i]) == 0:
                raise LLPFError(
                    f"layer {row.name} of the start has variance 0: no direction leads to a variance sphere; "
                    f"leave it out with layers.keep"
                )

    def _evenly(self) -> Tensor:
        """bool ``[S]``: segments whose learning rate the rule leaves alone."""
        rows = zip(self.flat.table.names, self.flat.kinds, self._tensor_variance.tolist(), strict=True)
        even = [
            kind is LayerKind.NORM or variance == 0 or (self.rule.lr_weights_only and "weight" not in name)
            for name, kind, variance in rows
        ]
        return torch.tensor(even, device=self.flat.data.device)

    def enter(self, active: Sequence[bool]) -> None:
        """Begin a stage: ``active`` says which segments move from now on.

        What training left belongs to the stage that ends: the next :meth:`tick` puts that back first. The first
        call only says where a search (or a resumed one) stands.
        """
        coming = self._flags(active)
        if not self._entered:
            self.mover.set_flags(coming)
        elif coming != [row.flags for row in self.mover.table.rows]:
            self._coming = coming
        self._entered = True

    def _flags(self, active: Sequence[bool]) -> list[SegmentFlag]:
        moving = [a and not stays for a, stays in zip(active, self._stays, strict=True)]
        return flags(self.rule, self.flat, self._treatment, moving, self._no_sphere())

    def _no_sphere(self) -> list[bool]:
        if self.rule.epsilon > 0:
            return [False] * len(self.flat.table)
        return (self.mover.target_variance == 0).tolist()

    def moving(self) -> list[bool]:
        """Which segments a tick moves now."""
        still = SegmentFlag.MASKED | SegmentFlag.HOLD
        now = self._coming or [row.flags for row in self.mover.table.rows]
        return [not flag & still for flag in now]

    def may_move(self) -> list[bool]:
        """Which segments the rule moves at all, once their stage is active."""
        pairs = zip(self._treatment, self._stays, strict=True)
        return [how is not LayerTreatment.KEEP and not stays for how, stays in pairs]

    def set_spheres(self, variance: Tensor) -> None:
        """Go on with other target variances, float64 ``[S]``."""
        self.mover.target_variance.copy_(variance)

    def tick(
        self, p: Tensor, *, project_first: bool, waypoint: Tensor | None = None, moments: Tensor | None = None
    ) -> None:
        """One tick on p ``[N]``, in place; see :meth:`Mover.tick`."""
        if self._coming is not None:
            if project_first:
                # Otherwise layers that join would be rescaled, and recorded so, without training after it, and layers
                # that leave would be recorded off their sphere. One more pass, at a stage's beginning only.
                self.mover.project(p)
                if waypoint is not None:
                    waypoint.copy_(p)
                project_first, waypoint, moments = False, None, None
            self.mover.set_flags(self._coming)
            self._coming = None
        self._entered = True
        self.mover.tick(p, project_first=project_first, waypoint=waypoint, moments=moments)

    def project(self, p: Tensor) -> None:
        """Put p ``[N]`` back on its spheres, in place."""
        self.mover.project(p)

    def rest(self, p: Tensor) -> Tensor:
        """``[N]``: where the straight rest of the way from p leads (the destination itself for POINT)."""
        if self.mover.destination is not None:
            return self.mover.destination
        there = p.clone()
        self.mover.arrive(there)
        return there

    def moments(self, p: Tensor) -> Tensor:
        """float64 ``[S, 5]`` of all segments of p toward the destination, masked or not."""
        return self._moments(p, self.mover.destination)

    def distances(self, p: Tensor, moments: Tensor | None = None) -> Tensor:
        """float64 ``[S]``: L2 distance to the destination of the group that each segment moves with.

        Frozen segments have none: neither their own nor their share of a group's.
        """
        moments = self.moments(p) if moments is None else moments
        moments = moments.masked_fill(self._frozen[:, None], 0.0)
        return self.spread.distance(moments, self.rule.destination, self.mover.radius)

    def total(self, distances: Tensor) -> Tensor:
        """One distance for the whole network from those ``[S]`` of its groups: float64 ``[]`` on the device."""
        return (distances.square() / self._members).sum().sqrt()

    def lr_scale(self, p: Tensor) -> Tensor | None:
        """float64 ``[S]``: factor of each segment's learning rate now, on the device; None where the rule is "none".

        Var_now / Var_start of the tensor or its root; 1 for normalization layers and where the start has no variance.
        LLPF's AngleConformal (arXiv 2505.02604) is "var"; "std" is the authors' code's other choice.
        """
        if self.rule.lr_rule == "none":
            return None
        ratio = self._tensors.variance(self._moments(p, None)) / self._tensor_variance
        if self.rule.lr_rule == "std":
            ratio = ratio.sqrt()
        return torch.where(self._trained_evenly, 1.0, ratio)


def radius_like(table: SegmentTable, kind: Destination, like: Tensor) -> Tensor:
    """float64 ``[S]``: the radii of the spheres that the flat point ``like [N]`` lies on; NaN for one-element layers
    of a variance sphere, which have none."""
    moments = ops.moments(like, None, table.segments, table.chunks, table.scratch())
    spread = GroupStatistics(table)
    if kind is Destination.NORM_SPHERE:
        return spread.norm(moments)
    variance = spread.variance(moments)
    return torch.where(spread.count > 1, variance, torch.nan)


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
