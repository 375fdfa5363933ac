"""What moves when: the routes of a search, their stages and spheres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.forward_order import data_flow_order
from ..ops import Destination, SegmentFlag
from ..settings import Settings
from ..tick import LayerTreatment, Route, Rule, match_layers, radius_like, sphere_table
from ..tick.segment_flags import treatments
from .search_state import SearchState


@dataclass(frozen=True)
class Stage:
    """A resolved stage: ``active`` has one entry a segment; it begins after ``start`` ticks or at ``distance``."""

    active: tuple[bool, ...]
    start: int | None = None
    ticks: int | None = None
    distance: float | None = None


class Schedule:
    """The phase that each tick belongs to. ``phase`` and ``since`` are all there is to remember for a resume.

    Args:
        phases: at least one; the first begins at once.
    """

    def __init__(self, phases: Sequence[Stage]) -> None:
        self._phases = tuple(phases)
        self.phase = 0
        #: Ticks done when the present phase began.
        self.since = 0

    @property
    def active(self) -> tuple[bool, ...]:
        return self._phases[self.phase].active

    @property
    def last(self) -> bool:
        return self.phase == len(self._phases) - 1

    def advance(self, done: int, shares: Sequence[float], moving: Sequence[bool]) -> bool:
        """Whether another phase begins after ``done`` ticks.

        Args:
            shares: for every segment the share of its initial distance that is left.
            moving: which segments the present phase really moves; the others never come closer.
        """
        began = self.phase
        while not self.last:
            coming = self._phases[self.phase + 1]
            by_tick = coming.start is not None and done >= coming.start
            by_tick |= coming.ticks is not None and done - self.since >= coming.ticks
            left = max((s for s, m in zip(shares, moving, strict=True) if m), default=0.0)
            if not (by_tick or (coming.distance is not None and left <= coming.distance)):
                break
            self.phase += 1
            self.since = done
            if not (coming.start is not None and done >= coming.start):
                # Shares belong to the layers of the phase that just ended; the next one's are looked at next time.
                break
        return self.phase != began


def make_schedule(
    settings: Settings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> Schedule:
    """The schedule that ``settings`` ask for.

    Args:
        may_move: which segments the rule moves at all, once they are active.
        forward: runs the module once, for the data flow.

    Raises:
        LLPFError: a pattern that matches no layer; a stage in which nothing would move.
    """
    if settings.schedule.kind == "data-flow":
        return Schedule(_data_flow(settings, flat, may_move, forward))
    names = flat.table.names
    phases = []
    for i, stage in enumerate(settings.schedule.stages):
        active = match_layers(names, stage.layers, f"schedule.stages[{i}].layers pattern")
        if not any(a and m for a, m in zip(active, may_move, strict=True)):
            patterns = ", ".join(stage.layers)
            raise LLPFError(f"schedule.stages[{i}] moves nothing: the rule keeps all of its layers ({patterns})")
        phases.append(Stage(tuple(active), stage.start, None, stage.distance))
    return Schedule(phases)


def _data_flow(
    settings: Settings, flat: FlatParameters, may_move: Sequence[bool], forward: Callable[[], object]
) -> list[Stage]:
    phases: list[Stage] = []
    seen: set[str] = set()
    for group in data_flow_order(flat.module, forward).groups:
        seen |= set(group)
        # A cut attention tensor has one segment a projection, called NAME[query] and so on.
        active = tuple(name.partition("[")[0] in seen and m for name, m in zip(flat.table.names, may_move, strict=True))
        if active != (phases[-1].active if phases else (False,) * len(active)):
            phases.append(Stage(active, None, settings.schedule.ticks, settings.schedule.distance))
    if not phases:
        raise LLPFError("schedule data-flow moves nothing: the rule keeps every layer")
    return phases


#: A layer has shrunk far enough within this factor of the destination's variance: training pushes back a little.
_REACHED = 1.01


class RoutePhases:
    """The routes of a search, in order, and what changes from one tick to the next: stages, legs, spheres.

    ``spheres.variance: blend`` lets every layer's target variance go from the start's to the destination's with the
    share of the way that the layer has come (ours). ``shrink-first`` is the authors' way: toward the origin until no
    layer has more variance than at the destination (layers that have less stay), and M2M from there on the spheres
    reached.

    Args:
        flat: at the start.
        like: ``[N]``: the destination (m2m), or a point on the spheres to go to.
    """

    def __init__(self, settings: Settings, rule: Rule, flat: FlatParameters, like: Tensor | None) -> None:
        self._settings = settings
        fixed, relative = settings.step.fixed, settings.step.relative
        goal = like if rule.destination is Destination.POINT else None
        self.main = Route(flat, rule, goal, _radius(settings, rule, flat, like), fixed=fixed, relative=relative)
        self._shrink: Route | None = None
        self._ends: Tensor | None = None
        self._come = torch.zeros_like(self.main.start_variance)
        if settings.spheres.variance != "start":
            assert like is not None
            ends = radius_like(self.main.table, Destination.VARIANCE_SPHERE, like)
            start = self.main.start_variance
            # A layer without a sphere never gets one while blending: its flags would depend on when a stage began.
            none = (start == 0) & (settings.spheres.variance == "blend") & (rule.epsilon == 0)
            self._ends = torch.where(ends.isnan() | none, start, ends)
            self._check_ends(flat)
        if settings.spheres.variance == "shrink-first":
            toward = replace(
                rule,
                destination=Destination.ORIGIN,
                project=False,
                normalization=LayerTreatment.KEEP,
                layer_norm=LayerTreatment.KEEP,
                lr_rule=settings.correction.lr_rule or "var",
            )
            self._shrink = Route(flat, toward, None, fixed=fixed, relative=relative)
        self.first = 0 if self._shrink is not None else 1
        self._nearer = [how is LayerTreatment.MOVE for how in treatments(rule, flat)]
        self._all_moving = [row.flags for row in self.main.mover.table.rows]
        on_sphere = rule.destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
        counted = self.main.may_move() if on_sphere else [True] * len(flat.table)
        self._counted = torch.tensor(counted, device=flat.data.device)
        self.initial_distance = self.distances(flat.data)
        self.initial_total = float(self.main.total(self.initial_distance))
        if not self.initial_total > 0:
            raise LLPFError(f"the start lies at the destination of mode {settings.mode} already: nothing would move")

    def _check_ends(self, flat: FlatParameters) -> None:
        assert self._ends is not None
        for name, start, end in zip(
            flat.table.names, self.main.start_variance.tolist(), self._ends.tolist(), strict=True
        ):
            if start > 0 and end == 0:
                raise LLPFError(
                    f"layer {name} of the destination has variance 0: spheres.variance: "
                    f"{self._settings.spheres.variance} would squeeze it into a point; leave it out with layers.keep"
                )

    def current(self, at: SearchState) -> Route:
        return self._shrink if at.leg == 0 and self._shrink is not None else self.main

    def is_last(self, at: SearchState) -> bool:
        return at.leg == 1

    @property
    def scale_lr(self) -> bool:
        """Whether a learning-rate rule is on in any leg."""
        return any(route is not None and route.rule.lr_rule != "none" for route in (self.main, self._shrink))

    def distances(self, p: Tensor, moments: Tensor | None = None) -> Tensor:
        """float64 ``[S]``, as :meth:`Route.distances`; 0 for layers that no sphere waits for."""
        return torch.where(self._counted, self.main.distances(p, moments), 0.0)

    def rest(self, p: Tensor) -> Tensor:
        """``[N]``: where the straight rest of the way from p leads, whichever stage it is.

        Layers of other stages go too: a sphere is reached when all have reached it.
        """
        mover = self.main.mover
        if mover.destination is not None:
            return mover.destination
        now = [row.flags for row in mover.table.rows]
        mover.set_flags([SegmentFlag.MASKED if f & SegmentFlag.COMPENSATE else f for f in self._all_moving])
        there = self.main.rest(p)
        mover.set_flags(now)
        return there

    def without_direction(self, p: Tensor) -> list[str]:
        """Layers that a norm sphere waits for and whose norm at p ``[N]`` is 0: no direction leads from there to it."""
        route = self.main
        if route.rule.destination is not Destination.NORM_SPHERE:
            return []
        still = self._counted & (route.spread.norm(route.moments(p)) == 0)
        return [name for name, stays in zip(route.table.names, still.tolist(), strict=True) if stays]

    def enter(self, at: SearchState, schedule: Schedule) -> None:
        """Set the flags for where the search stands: at its beginning, after a resume, at a change."""
        if at.leg == 0 and self._shrink is not None:
            self._shrink.enter(self._still_wide(at))
        else:
            self.main.enter(schedule.active)

    def advance(self, at: SearchState, schedule: Schedule) -> None:
        """What begins with the tick ``at.tick``: another leg, another stage."""
        done = at.tick - 1
        if at.leg == 0:
            if any(self._still_wide(at)) and done < self._settings.spheres.shrink_ticks:
                self.enter(at, schedule)
                return
            at.leg, at.leg_began = 1, done
            self.main.set_spheres(torch.tensor(at.variances, dtype=torch.float64))
            self.main.mover.set_pace(at.pace)
            self.enter(at, schedule)
        # A layer that compensates moves away: waiting for it, a stage would never end.
        moving = [m and nearer for m, nearer in zip(self.main.moving(), self._nearer, strict=True)]
        if schedule.advance(done - at.leg_began, at.shares, moving):
            self.enter(at, schedule)

    def _still_wide(self, at: SearchState) -> list[bool]:
        assert self._ends is not None
        assert self._shrink is not None
        may = self._shrink.may_move()
        return [m and now > end * _REACHED for m, now, end in zip(may, at.variances, self._ends.tolist(), strict=True)]

    def follow(self, at: SearchState, shares: Tensor) -> None:
        """Let blending spheres follow the way that each layer has come; they never go back."""
        if self._settings.spheres.variance != "blend" or at.point == 0:
            return
        self._come, spheres = self._spheres_at(shares)
        self.main.set_spheres(spheres)

    def _spheres_at(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        assert self._ends is not None
        come = torch.maximum(self._come, (1.0 - shares).clamp(0.0, 1.0))
        return come, torch.lerp(self.main.start_variance, self._ends, come)

    def project_as_recorded(self, at: SearchState, p: Tensor, shares: Tensor) -> None:
        """Put p ``[N]`` on the spheres that :meth:`follow` would give it if it were accepted; nothing else changes."""
        route = self.current(at)
        if self._settings.spheres.variance != "blend":
            route.project(p)
            return
        now = route.mover.target_variance.clone()
        route.set_spheres(self._spheres_at(shares)[1])
        route.project(p)
        route.set_spheres(now)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        if self._settings.spheres.variance == "start":
            return {}
        return {"spheres": self.main.mover.target_variance, "come": self._come}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave."""
        if "spheres" in tensors:
            self.main.set_spheres(tensors["spheres"])
            self._come = tensors["come"].to(self._come.device)


def _radius(settings: Settings, rule: Rule, flat: FlatParameters, like: Tensor | None) -> Tensor | None:
    if rule.destination not in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE):
        return None
    if like is not None:
        return radius_like(sphere_table(rule, flat), rule.destination, like)
    radius = torch.full((len(flat.table),), torch.nan, dtype=torch.float64)
    for pattern, value in settings.spheres.radii.items():
        radius[torch.tensor(match_layers(flat.table.names, [pattern], "spheres.radii pattern"))] = value
    return radius.to(flat.data.device)
