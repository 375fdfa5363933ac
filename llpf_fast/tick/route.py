"""``Route``: one rule applied to one flat module that holds its start's values, ready to tick."""

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
    """Moves a flat buffer toward a destination and puts it back on variance spheres, one op call a tick.

    Args:
        flat: holds the start's values now. Its buffer is what :meth:`tick` is given later.
        rule: every switch of a tick.
        destination: ``[N]`` for the destination POINT, else ``None``.
        radius: float64 ``[S]`` for the sphere destinations: unbiased variance or L2 norm. NaN: the segment stays.
        fixed, relative: the step's two lengths (units of the parameters; share of the distance).

    Attributes:
        table: the segments in the rule's variance groups, with the flags of the present stage.
        start_variance: float64 ``[S]``: variance of each variance group at the start.
        target_variance: float64 ``[S]``: variance of each sphere; the start's until :meth:`set_spheres`.
        initial_distance: float64 ``[S]``: :meth:`distances` at the start.
        step_lengths: the two lengths of the next step, on the host.

    Raises:
        LLPFError: a pattern of the rule that matches nothing; a sphere that a layer cannot have, or that a frozen one
            does not lie on.
    """

    def __init__(
        self,
        flat: FlatParameters,
        rule: Rule,
        destination: Tensor | None,
        radius: Tensor | None = None,
        *,
        fixed: float,
        relative: float,
    ) -> None:
        self.flat, self.rule, self.destination = flat, rule, destination
        self.table = table = sphere_table(rule, flat)
        device = table.device
        self._scratch = table.scratch()
        self.statistics = GroupStatistics(table)
        moments = self._moments(flat.data, None)
        self.start_variance = self.statistics.variance(moments)
        self.target_variance = self.start_variance.clone()
        # Learning rates follow the whole tensor, also where a part of it moves.
        self._tensors = GroupStatistics(flat.table)
        self._tensor_variance = self._tensors.variance(moments)
        self._treatment = treatments(rule, flat)
        is_frozen = frozen(rule, flat)
        self._frozen = torch.tensor(is_frozen, dtype=torch.bool, device=device)
        _, size = torch.unique_consecutive(flat.table.segments[:, 2], return_counts=True)
        #: float64 ``[S]``: members of each segment's distance group. Computed once: it makes the host wait.
        self._members = size.double().repeat_interleave(size)
        self._without_radius = [False] * len(table) if radius is None else radius.isnan().tolist()
        if radius is not None:
            self._check_frozen(radius, moments, is_frozen)
            self._check_radius(radius)
            radius = radius.nan_to_num(0.0).masked_fill(self._frozen, 0.0)
        self._radius = radius
        self._base_lengths = fixed, relative
        self.step_lengths = [fixed, relative]
        self._step = torch.tensor(self.step_lengths, dtype=torch.float64, device=device)
        self._no_step = torch.zeros(2, dtype=torch.float64, device=device)
        self._whole_way = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
        self._fixed_lr = self._segments_of_fixed_lr()
        self.initial_distance = self.distances(flat.data)
        self._set_flags(self._flags([True] * len(table)))
        #: Every layer that comes nearer, whatever the stage.
        self._rest_table = self.table.with_flags(
            [
                SegmentFlag.MASKED if row.flags & SegmentFlag.COMPENSATE else row.flags  # moves away
                for row in self.table.rows
            ]
        )

    def _check_frozen(self, radius: Tensor, moments: Tensor, is_frozen: Sequence[bool]) -> None:
        """A frozen layer has to lie on its sphere already, unless it is left out by name or kind."""
        on_variance = self.rule.destination is Destination.VARIANCE_SPHERE
        now = (self.start_variance if on_variance else self.statistics.norm(moments)).tolist()
        left_out = [how is LayerTreatment.KEEP for how in chosen_treatments(self.rule, self.flat)]
        for i, (row, target) in enumerate(zip(self.flat.table.rows, radius.tolist(), strict=True)):
            if not is_frozen[i] or left_out[i] or self._without_radius[i]:
                continue
            if abs(now[i] - target) > _ON_SPHERE * max(now[i], target):
                raise LLPFError(
                    f"layer {row.name} is frozen (requires_grad=False) and does not lie on its sphere, so it would "
                    "never arrive: set layers.move_frozen: true, or leave it out with layers.keep"
                )

    def _check_radius(self, radius: Tensor) -> None:
        on_variance = self.rule.destination is Destination.VARIANCE_SPHERE
        variance = self.start_variance.tolist()
        for i, (row, target) in enumerate(zip(self.flat.table.rows, radius.tolist(), strict=True)):
            if self._without_radius[i] or self._treatment[i] is LayerTreatment.KEEP:
                continue
            if target <= 0:
                raise LLPFError(
                    f"the sphere of layer {row.name} has {'variance' if on_variance else 'norm'} {target:g}; it must "
                    "be positive: give another number, or leave the layer out with layers.keep"
                )
            if on_variance and row.length > 1 and variance[i] == 0:
                raise LLPFError(
                    f"layer {row.name} of the start has variance 0: no direction leads to a variance sphere; "
                    f"leave it out with layers.keep"
                )

    def _segments_of_fixed_lr(self) -> Tensor:
        """bool ``[S]``: segments whose learning rate the rule leaves alone."""
        rows = zip(self.flat.table.names, self.flat.kinds, self._tensor_variance.tolist(), strict=True)
        fixed = [
            kind is LayerKind.NORM or variance == 0 or (self.rule.lr_weights_only and "weight" not in name)
            for name, kind, variance in rows
        ]
        return torch.tensor(fixed, device=self.flat.data.device)

    def enter(self, active: Sequence[bool]) -> None:
        """Begin a stage: ``active`` says which segments move from now on."""
        new = self._flags(active)
        if new != [row.flags for row in self.table.rows]:
            self._set_flags(new)

    def _flags(self, active: Sequence[bool]) -> list[SegmentFlag]:
        moving = [a and not stays for a, stays in zip(active, self._without_radius, strict=True)]
        no_sphere = (self.target_variance == 0).tolist() if self.rule.epsilon == 0 else [False] * len(self.table)
        return flags(self.rule, self.flat, self._treatment, moving, no_sphere)

    def _set_flags(self, new: Sequence[SegmentFlag]) -> None:
        self.table = self.table.with_flags(new)
        #: bool ``[S, 1]``
        self._masked = (self.table.segments[:, 4:] & int(SegmentFlag.MASKED)) != 0

    def moving(self) -> list[bool]:
        """Which segments a tick moves now."""
        return [not row.flags & (SegmentFlag.MASKED | SegmentFlag.HOLD) for row in self.table.rows]

    def may_move(self) -> list[bool]:
        """Which segments the rule moves at all, once their stage is active."""
        pairs = zip(self._treatment, self._without_radius, strict=True)
        return [how is not LayerTreatment.KEEP and not stays for how, stays in pairs]

    def set_spheres(self, variance: Tensor) -> None:
        """Use other target variances from now on, float64 ``[S]``."""
        self.target_variance.copy_(variance)

    def scale_step(self, scale: float) -> None:
        """Both lengths of the step times ``scale``; the relative one is at most 1, the whole distance."""
        fixed, relative = self._base_lengths
        self.step_lengths = [fixed * scale, min(relative * scale, 1.0)]
        for element, length in zip(self._step, self.step_lengths, strict=True):
            element.fill_(length)  # a copy from the host's memory would wait for a GPU

    def tick(self, p: Tensor) -> None:
        """Move and project p ``[N]`` in place."""
        self._tick(p, self._step)

    def project(self, p: Tensor, moments: Tensor | None = None, spheres: Tensor | None = None) -> None:
        """Put p ``[N]`` back on its spheres, in place: a tick of length zero.

        Args:
            moments: :meth:`moments` of p, where the caller has them: p is then read once instead of twice, and the
                destination not at all.
            spheres: float64 ``[S]``: other target variances.
        """
        if moments is not None:
            # Groups are summed over all of their members, so what is masked must not count.
            moments = moments.masked_fill(self._masked, 0.0)
        self._tick(p, self._no_step, spheres=spheres, moments=moments)

    def rest(self, p: Tensor) -> Tensor:
        """``[N]``: where the straight rest of the way from p leads (the destination itself for POINT).

        Layers of other stages go there too: a sphere is reached when all layers have reached it.
        """
        if self.destination is not None:
            return self.destination
        end = p.clone()
        self._tick(end, self._whole_way, table=self._rest_table)
        return end

    def _tick(
        self,
        p: Tensor,
        step: Tensor,
        *,
        table: SegmentTable | None = None,
        spheres: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> None:
        table = self.table if table is None else table
        torch.ops.llpf_fast.tick_.default(
            p,
            self.destination,
            table.segments,
            table.chunks,
            self.target_variance if spheres is None else spheres,
            step,
            None,
            self._radius,
            moments,
            None,
            self._scratch,
            destination=int(self.rule.destination),
            epsilon=self.rule.epsilon,
            combine_sum=self.rule.combine_sum,
            clamp=self.rule.clamp,
            project_first=False,
        )

    def moments(self, p: Tensor) -> Tensor:
        """float64 ``[S, 5]`` of all segments of p ``[N]`` toward the destination, masked or not."""
        return self._moments(p, self.destination)

    def _moments(self, p: Tensor, destination: Tensor | None) -> Tensor:
        table = self.flat.table
        return ops.moments(p, destination, table.segments, table.chunks, self._scratch)

    def distances(self, p: Tensor, moments: Tensor | None = None) -> Tensor:
        """float64 ``[S]``: L2 distance to the destination of the group that each segment moves with.

        Frozen segments have none: neither their own nor their share of a group's.
        """
        moments = self.moments(p) if moments is None else moments
        moments = moments.masked_fill(self._frozen[:, None], 0.0)
        return self.statistics.distance(moments, self.rule.destination, self._radius)

    def total(self, distances: Tensor) -> Tensor:
        """float64 ``[]``: distance of the whole network from those ``[S]`` of its groups, on the device."""
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
        return torch.where(self._fixed_lr, 1.0, ratio)


def radius_like(table: SegmentTable, kind: Destination, like: Tensor) -> Tensor:
    """float64 ``[S]``: radii of the spheres that the flat point ``like [N]`` lies on.

    NaN for one-element layers and a variance sphere: they have none. ``table`` must mask nothing.
    """
    moments = ops.moments(like, None, table.segments, table.chunks, table.scratch())
    statistics = GroupStatistics(table)
    if kind is Destination.NORM_SPHERE:
        return statistics.norm(moments)
    return torch.where(statistics.count > 1, statistics.variance(moments), torch.nan)
