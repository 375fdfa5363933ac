"""Which layers move in a tick, and where to: the phases of a search, their stages and spheres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.forward_order import data_flow_order
from ..ops import Destination
from ..settings import ScheduleSettings, SphereSettings, StepSettings
from ..tick import LayerTreatment, Route, Rule, match_layers, radius_like, sphere_table
from ..tick.segment_flags import treatments
from .search_state import SearchState


@dataclass(frozen=True)
class Stage:
    """A resolved stage.

    Attributes:
        active: one entry a segment: whether the stage moves it.
        start: ticks of the phase after which the stage begins.
        ticks: ticks of the stage before after which it begins.
        distance: share of the initial distance, left to the layers of the stage before, at which it begins.
    """

    active: tuple[bool, ...]
    start: int | None = None
    ticks: int | None = None
    distance: float | None = None


class Schedule:
    """The stage that each tick belongs to; ``stage`` and ``stage_began`` are all that a checkpoint needs.

    Args:
        stages: at least one; the first begins at once.

    Attributes:
        stage: index of the present stage.
        stage_began: ticks of the phase when it began.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self.stage = 0
        self.stage_began = 0

    @property
    def active(self) -> tuple[bool, ...]:
        """Which segments the present stage moves."""
        return self._stages[self.stage].active

    @property
    def last(self) -> bool:
        return self.stage == len(self._stages) - 1

    def advance(self, done: int, shares: Sequence[float], moving: Sequence[bool]) -> bool:
        """Whether another stage begins after ``done`` ticks.

        Args:
            shares: for every segment the share of its initial distance that is left.
            moving: which segments come closer in the present stage; a stage does not wait for the others.
        """
        before = self.stage
        while not self.last:
            following = self._stages[self.stage + 1]
            by_tick = following.start is not None and done >= following.start
            by_tick |= following.ticks is not None and done - self.stage_began >= following.ticks
            left = max((s for s, m in zip(shares, moving, strict=True) if m), default=0.0)
            if not (by_tick or (following.distance is not None and left <= following.distance)):
                break
            self.stage += 1
            self.stage_began = done
            if not (following.start is not None and done >= following.start):
                # The shares are those of the stage that ended; the new stage is measured after its first tick.
                break
        return self.stage != before


def make_schedule(
    settings: ScheduleSettings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> Schedule:
    """The schedule that ``settings`` ask for.

    Args:
        may_move: which segments the rule moves at all, once they are active.
        forward: runs the module once; called where the schedule follows the data flow.

    Raises:
        LLPFError: a pattern that matches no layer; a stage in which nothing would move.
    """
    if settings.kind == "data-flow":
        return Schedule(_data_flow(settings, flat, may_move, forward))
    names = flat.table.names
    stages = []
    for i, stage in enumerate(settings.stages):
        active = match_layers(names, stage.layers, f"schedule.stages[{i}].layers pattern")
        if not any(a and m for a, m in zip(active, may_move, strict=True)):
            patterns = ", ".join(stage.layers)
            raise LLPFError(f"schedule.stages[{i}] moves nothing: the rule keeps all of its layers ({patterns})")
        stages.append(Stage(tuple(active), stage.start, None, stage.distance))
    return Schedule(stages)


def _data_flow(
    settings: ScheduleSettings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> list[Stage]:
    stages: list[Stage] = []
    reached: set[str] = set()
    for group in data_flow_order(flat.module, forward).groups:
        reached |= set(group)
        # A cut attention tensor has one segment a projection, called NAME[query] and so on.
        pairs = zip(flat.table.names, may_move, strict=True)
        active = tuple(name.partition("[")[0] in reached and may for name, may in pairs)
        if active != (stages[-1].active if stages else (False,) * len(active)):
            stages.append(Stage(active, None, settings.ticks, settings.distance))
    if not stages:
        raise LLPFError("schedule data-flow moves nothing: the rule keeps every layer")
    return stages


#: A layer has shrunk enough at this multiple of the destination's variance, because training makes it grow a little.
_SHRUNK = 1.01


class RoutePhases:
    """The routes of a search, one a phase, and what changes from one tick to the next: phase, stage, spheres.

    ``spheres.variance: blend`` lets every layer's target variance go from the start's to the destination's with the
    share of the way that the layer has gone (ours). ``shrink-first`` is the authors' way in two phases: "shrink" goes
    toward the origin until no layer has more variance than at the destination (layers that have less stay), then "main"
    goes to the destination on the spheres reached. Otherwise "main" is the only phase.

    Args:
        flat: holds the start's values.
        target: ``[N]``: the destination (m2m), a point on the spheres to go to, or ``None``.
        shrink_lr_rule: the learning-rate rule of the phase "shrink".

    Attributes:
        main: the route of the phase "main".
        first_phase: the name of the first phase.
        initial_distance: float64 ``[S]``, see :meth:`distances`.
        initial_total: distance of the whole network at the start.

    Raises:
        LLPFError: see :class:`Route`; a destination that would squeeze a layer into a point; a start that lies at the
            destination.
    """

    def __init__(
        self,
        step: StepSettings,
        spheres: SphereSettings,
        rule: Rule,
        flat: FlatParameters,
        target: Tensor | None,
        *,
        shrink_lr_rule: Literal["none", "std", "var"] = "var",
    ) -> None:
        self._spheres = spheres
        fixed, relative = step.fixed, step.relative
        destination = target if rule.destination is Destination.POINT else None
        radius = _radius(spheres, rule, flat, target)
        self.main = Route(flat, rule, destination, radius, fixed=fixed, relative=relative)
        self._shrink: Route | None = None
        #: float64 ``[S]``: the variances to go to, and the share of the way there, where variances change.
        self._end_variance: Tensor | None = None
        self._blended = torch.zeros_like(self.main.start_variance)
        if spheres.variance != "start":
            assert target is not None
            end = radius_like(sphere_table(rule, flat), Destination.VARIANCE_SPHERE, target)
            start = self.main.start_variance
            # A layer without a sphere never gets one while blending: its flags would depend on when a stage began.
            no_sphere = (start == 0) & (spheres.variance == "blend") & (rule.epsilon == 0)
            self._end_variance = torch.where(end.isnan() | no_sphere, start, end)
            self._check_end_variance(flat)
        if spheres.variance == "shrink-first":
            toward_origin = replace(
                rule,
                destination=Destination.ORIGIN,
                project=False,
                normalization=LayerTreatment.KEEP,
                layer_norm=LayerTreatment.KEEP,
                lr_rule=shrink_lr_rule,
            )
            self._shrink = Route(flat, toward_origin, None, fixed=fixed, relative=relative)
        self.first_phase = "main" if self._shrink is None else "shrink"
        self._comes_nearer = [how is LayerTreatment.MOVE for how in treatments(rule, flat)]
        on_sphere = rule.destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
        counted = self.main.may_move() if on_sphere else [True] * len(flat.table)
        self._counted = torch.tensor(counted, device=flat.data.device)
        self.initial_distance = self.distances(flat.data)
        self.initial_total = float(self.main.total(self.initial_distance))
        if not self.initial_total > 0:
            raise LLPFError("the start lies at the destination already: nothing would move")

    def _check_end_variance(self, flat: FlatParameters) -> None:
        assert self._end_variance is not None
        variances = self.main.start_variance.tolist(), self._end_variance.tolist()
        for name, start, end in zip(flat.table.names, *variances, strict=True):
            if start > 0 and end == 0:
                raise LLPFError(
                    f"layer {name} of the destination has variance 0: spheres.variance: "
                    f"{self._spheres.variance} would squeeze it into a point; leave it out with layers.keep"
                )

    def current(self, state: SearchState) -> Route:
        """The route of the present phase."""
        return self._shrink if state.phase == "shrink" and self._shrink is not None else self.main

    @property
    def scales_lr(self) -> bool:
        """Whether a learning-rate rule is on in any phase."""
        return any(route is not None and route.rule.lr_rule != "none" for route in (self.main, self._shrink))

    def distances(self, p: Tensor, moments: Tensor | None = None) -> Tensor:
        """float64 ``[S]``, as :meth:`Route.distances`; 0 for layers that have no sphere to go to."""
        return torch.where(self._counted, self.main.distances(p, moments), 0.0)

    def without_direction(self, p: Tensor) -> list[str]:
        """Layers of norm 0 at p ``[N]`` that should go to a norm sphere: no direction leads from there to it."""
        route = self.main
        if route.rule.destination is not Destination.NORM_SPHERE:
            return []
        at_zero = self._counted & (route.statistics.norm(route.moments(p)) == 0)
        return [name for name, stays in zip(route.table.names, at_zero.tolist(), strict=True) if stays]

    def enter(self, state: SearchState, schedule: Schedule) -> None:
        """Set the flags for the present phase and stage."""
        if state.phase == "shrink" and self._shrink is not None:
            self._shrink.enter(self._too_wide(state))
        else:
            self.main.enter(schedule.active)

    def advance(self, state: SearchState, schedule: Schedule) -> None:
        """Begin what begins with the tick ``state.tick``: another phase, another stage."""
        done = state.tick - 1
        if state.phase == "shrink":
            if any(self._too_wide(state)) and done < self._spheres.shrink_ticks:
                self.enter(state, schedule)
                return
            state.phase, state.phase_began = "main", done
            self.main.set_spheres(torch.tensor(state.variances, dtype=torch.float64))
            self.main.scale_step(state.step_scale)
            # The point lies on the spheres just set.
            self.enter(state, schedule)
        # A layer that compensates moves away: a stage that waited for it would never end.
        moving = [m and nearer for m, nearer in zip(self.main.moving(), self._comes_nearer, strict=True)]
        if schedule.advance(done - state.phase_began, state.shares, moving):
            self.enter(state, schedule)

    def _too_wide(self, state: SearchState) -> list[bool]:
        """Which segments still have to shrink."""
        assert self._end_variance is not None
        assert self._shrink is not None
        rows = zip(self._shrink.may_move(), state.variances, self._end_variance.tolist(), strict=True)
        return [may and now > end * _SHRUNK for may, now, end in rows]

    def blend_spheres(self, state: SearchState, shares: Tensor) -> None:
        """With ``blend``: set the spheres of an accepted point by the shares ``[S]`` of the way that are left to it.

        A sphere never goes back.
        """
        if self._spheres.variance != "blend" or state.accepted_tick == 0:
            return
        self._blended, spheres = self._blended_spheres(shares)
        self.main.set_spheres(spheres)

    def _blended_spheres(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        assert self._end_variance is not None
        blended = torch.maximum(self._blended, (1.0 - shares).clamp(0.0, 1.0))
        return blended, torch.lerp(self.main.start_variance, self._end_variance, blended)

    def project_as_accepted(self, state: SearchState, p: Tensor, shares: Tensor, moments: Tensor) -> None:
        """Put p ``[N]``, of these ``moments [S, 5]``, on the spheres that :meth:`blend_spheres` would set for it."""
        blends = self._spheres.variance == "blend"
        self.current(state).project(p, moments, self._blended_spheres(shares)[1] if blends else None)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        if self._spheres.variance == "start":
            return {}
        return {"spheres": self.main.target_variance, "blended": self._blended}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave."""
        if "spheres" in tensors:
            self.main.set_spheres(tensors["spheres"])
            self._blended = tensors["blended"].to(self._blended.device)


def _radius(spheres: SphereSettings, rule: Rule, flat: FlatParameters, target: Tensor | None) -> Tensor | None:
    if rule.destination not in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE):
        return None
    if target is not None:
        return radius_like(sphere_table(rule, flat), rule.destination, target)
    radius = torch.full((len(flat.table),), torch.nan, dtype=torch.float64)
    for pattern, value in spheres.radii.items():
        radius[torch.tensor(match_layers(flat.table.names, [pattern], "spheres.radii pattern"))] = value
    return radius.to(flat.data.device)
