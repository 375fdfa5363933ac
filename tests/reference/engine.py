"""The fast side: what ``PathFinder`` makes of settings, ticked without data and without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llpf_fast.find import Settings
from llpf_fast.find.phases import RoutePhases, make_schedule
from llpf_fast.find.search_state import SearchState
from llpf_fast.flat import FlatParameters
from llpf_fast.settings import (
    CorrectionSettings,
    LayerSettings,
    ScheduleSettings,
    SphereSettings,
    StageSettings,
    StepSettings,
)
from llpf_fast.tick.rule import Rule

from .networks import as_state, zoo
from .oracle import Array, Arrays
from .settings_table import Case


def settings_of(case: Case, sphere: Mapping[str, float], ticks: int) -> Settings:
    """The settings that a user would write."""
    stages = [StageSettings(start=after, layers=list(names)) for after, names in case.stages]
    return Settings(
        mode=case.mode,
        dialect=case.dialect,
        max_ticks=ticks,
        step=StepSettings(case.fixed, case.relative, case.combine, case.clamp, case.epsilon, case.join_bias),
        layers=LayerSettings(
            normalization=case.normalization,
            keep=list(case.keep),
            compensate=list(case.compensate),
            compensate_twice=list(case.compensate_twice),
            attention=case.attention,
            attention_biases=case.attention_biases,
            rescale_skipped=case.rescale_skipped,
            rescale_normalization=case.rescale_normalization,
        ),
        correction=CorrectionSettings(lr_rule=case.lr_rule, lr_rule_layers=case.lr_rule_layers),
        spheres=SphereSettings(variance=case.variance, radii=dict(sphere)),
        schedule=ScheduleSettings(stages=stages) if stages else ScheduleSettings(),
    )


class Engine:
    """Ticks as :class:`~llpf_fast.find.PathFinder` does: what training leaves is projected at once."""

    def __init__(
        self,
        case: Case,
        start: Arrays,
        goal: Arrays,
        sphere: Mapping[str, float],
        dtype: torch.dtype,
        ticks: int,
    ) -> None:
        settings = settings_of(case, sphere, ticks)
        rule = Rule.from_settings(settings)
        self.module = zoo(dtype)
        self.flat = FlatParameters(self.module, join_bias=settings.step.join_bias, cut_attention=rule.values_only)
        self.flat.load(as_state(start, self.module))
        self.buffers = {name: buffer.clone() for name, buffer in self.flat.buffers().items()}
        target = self.flat.flatten(as_state(goal, self.module)) if case.mode == "m2m" else None
        self.phases = RoutePhases(settings.step, settings.spheres, rule, self.flat, target)
        self.schedule = make_schedule(settings.schedule, self.flat, self.phases.main.may_move(), lambda: None)
        self.at = SearchState(phase=self.phases.first_phase)
        self._measure(self.phases.main.moments(self.flat.data))
        self.phases.enter(self.at, self.schedule)
        #: Where in the buffer each element lies, tensors one after another in the order of ``start``.
        position = self.flat.views(torch.arange(self.flat.table.numel))
        self._index = torch.cat([position[name].reshape(-1) for name in start])

    def move(self) -> None:
        self.at.tick += 1
        self.flat.ensure()
        self.phases.advance(self.at, self.schedule)
        self.phases.current(self.at).tick(self.flat.data)

    def trained(self, change: Array) -> None:
        """What training would have done, tensors one after another."""
        self.flat.data[self._index] += torch.from_numpy(change).to(self.flat.data.dtype)
        self.at.accepted_tick = self.at.tick
        self._measure(self.phases.main.moments(self.flat.data))

    def project(self) -> None:
        """Make the waypoint of what training left."""
        self.phases.current(self.at).project(self.flat.data, self.phases.main.moments(self.flat.data))

    def _measure(self, moments: Tensor) -> None:
        route = self.phases.main
        initial = route.initial_distance
        shares = torch.where(initial > 0, route.distances(self.flat.data, moments) / initial, 0.0)
        self.phases.blend_spheres(self.at, shares)
        self.at.shares, self.at.variances = shares.tolist(), route.statistics.variance(moments).tolist()

    def values(self) -> Array:
        """float64, tensors one after another in the order of ``start``."""
        return self.flat.data[self._index].double().numpy()

    def rates(self) -> dict[str, float] | None:
        """Factors of the learning rates now; a tensor cut in pieces has the same in each."""
        scale = self.phases.current(self.at).lr_scale(self.flat.data)
        return None if scale is None else _one_a_name(self.flat.parameter_names, scale.tolist())

    def untouched(self) -> bool:
        """Whether every running statistic has its bits."""
        now = self.flat.buffers()
        return all(torch.equal(now[name], buffer) for name, buffer in self.buffers.items())


def _one_a_name(names: Sequence[str], numbers: Sequence[float]) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, number in zip(names, numbers, strict=True):
        assert result.setdefault(name, number) == number, f"pieces of {name} differ"
    return result
