"""From settings, network and data to the parts of a search: the one builder of both finders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..batches.sampling import round_key
from ..correct import Correction
from ..correct.correction import Trainer
from ..correct.optimizer_step import LayerRates, one_group_each
from ..errors import LLPFError, one_line
from ..flat import FlatParameters
from ..settings import Settings
from ..tick.rule import Rule
from ..types import IsNorm, OptimizerFactory, StateDict
from ..user_code import checked_norm_rule, checked_optimizer, norm_rule, optimizer_factory
from .chord import MOST_PARAMETERS, ChordCheck, WeightedUnits
from .endpoints import Endpoints
from .phases import RoutePhases, make_schedule
from .record import Record
from .screening import ScreeningEvaluator
from .search import PathSearch
from .task import Task

T = TypeVar("T")


def user_optimizer(settings: Settings, given: OptimizerFactory | None = None) -> OptimizerFactory | None:
    """The user's function that makes the correction's optimiser, as an argument or by name; None: the fused SGD.

    Raises:
        LLPFError: given twice; no such code.
    """
    checked = None if given is None else checked_optimizer(given)
    return _given_or_named("optimizer", settings.optimizer, checked, optimizer_factory)


def user_norm_rule(settings: Settings, given: IsNorm | None = None) -> IsNorm | None:
    """The user's function that counts more modules as normalization layers, as an argument or by name.

    Raises:
        LLPFError: given twice; no function of a module; no such code.
    """
    checked = None if given is None else checked_norm_rule(given)
    return _given_or_named("is_norm", settings.is_norm, checked, norm_rule)


def _given_or_named(key: str, named: str, given: T | None, load: Callable[[str], T]) -> T | None:
    if not named:
        return given
    if given is not None:
        raise LLPFError(f"{key} is given twice, as an argument and by name in the settings; leave one out")
    return load(named)


@dataclass(frozen=True)
class Common:
    """What all searches of a finder share, apart from the :class:`Task`."""

    settings: Settings
    device: torch.device
    rule: Rule
    is_norm: IsNorm | None

    @classmethod
    def of(cls, settings: Settings, device: torch.device, is_norm: IsNorm | None) -> Common:
        """LLPFError: see :func:`user_norm_rule`."""
        return cls(settings, device, Rule.from_settings(settings), user_norm_rule(settings, is_norm))

    @property
    def layout(self) -> dict[str, bool]:
        """Options of :class:`FlatParameters` that decide its segments."""
        return {"join_bias": self.settings.step.join_bias, "cut_attention": self.rule.values_only}

    def endpoints(self, start: StateDict, destination: StateDict | None) -> Endpoints:
        """LLPFError: see :class:`Endpoints`."""
        s = self.settings
        radii, move_frozen = bool(s.spheres.radii), s.layers.move_frozen
        return Endpoints(s.mode, start, destination, radii=radii, move_frozen=move_frozen)

    def flat(self, module: nn.Module) -> FlatParameters:
        """The flat buffer of ``module``, which is moved to the device."""
        return FlatParameters(module.to(self.device), is_norm=self.is_norm, **self.layout)


_STREAM_MODULE_RANDOMNESS = 2


def module_seed(seed: int, first_step: int) -> int:
    """The seed of what a module draws itself (dropout) in the training that begins with step ``first_step``."""
    return round_key(seed, 0, first_step, _STREAM_MODULE_RANDOMNESS)


#: What trains a path: its trainer and, where a torch optimiser is used, that and its rates per layer.
PathTrainer = tuple[Trainer, torch.optim.Optimizer | None, LayerRates | None]


def make_search(
    common: Common,
    task: Task,
    screening: ScreeningEvaluator,
    flat: FlatParameters,
    endpoints: Endpoints,
    target: Tensor | None,
    make_trainer: Callable[[RoutePhases], PathTrainer],
    **record: Any,
) -> PathSearch:
    """The search of one path.

    Args:
        flat: holds the start's values.
        target: result of :meth:`Endpoints.load`.
        record: ``out``, ``resume``, ``provenance``, ``progress``, ``parallel`` of :class:`Record`.

    Raises:
        LLPFError: settings, endpoints or a run directory that cannot work.
    """
    settings = common.settings
    shrink_lr_rule = settings.correction.lr_rule or "var"
    phases = RoutePhases(settings.step, settings.spheres, common.rule, flat, target, shrink_lr_rule=shrink_lr_rule)
    trainer, optimizer, rates = make_trainer(phases)
    endpoints.check_losses(screening.loss, flat.data, target, settings.threshold)
    schedule = make_schedule(settings.schedule, flat, phases.main.may_move(), lambda: task.run_once(flat.module))
    run = Record(settings, endpoints, common.device, task=task.summary, **record)
    evaluator = partial(task.evaluator_of_all, flat.module)
    return PathSearch(settings, flat, endpoints, phases, schedule, trainer, run, evaluator, optimizer, rates)


def make_chord_check(module: nn.Module, task: Task) -> ChordCheck:
    """The check of chords on the screening samples of ``task``, for both finders."""
    size = sum(parameter.numel() for parameter in module.parameters())
    # Re-estimated statistics have no enclosure, and every one of some 35 points would cost an estimation.
    affordable = size <= MOST_PARAMETERS and task.estimated is None
    return ChordCheck((lambda: WeightedUnits.of(task.evaluator(module, task.screened))) if affordable else None)


def make_optimizer(
    factory: OptimizerFactory | None, flat: FlatParameters, by_layer: bool
) -> tuple[torch.optim.Optimizer | None, LayerRates | None]:
    """The optimiser that ``factory`` makes and, with ``by_layer``, its rates per layer; None for the fused SGD.

    Raises:
        LLPFError: the optimiser refuses the parameters or their groups.
    """
    if factory is None:
        return None, None
    try:
        optimizer = factory(one_group_each(flat.module) if by_layer else flat.module.parameters())
    except LLPFError:
        raise
    except ValueError as error:
        what = "one group a parameter, for correction.lr_rule (none: one group)" if by_layer else "the parameters"
        raise LLPFError(f"the optimizer refuses {what}: {one_line(error)}") from error
    return optimizer, LayerRates(optimizer, flat) if by_layer else None


def make_correction(task: Task, flat: FlatParameters, optimizer: torch.optim.Optimizer | None) -> Correction:
    """The correction of one path, by the fused SGD or by ``optimizer``."""
    c = task.settings.correction
    return Correction(
        flat,
        task.loss_fn,
        task.batches(),
        optimizer=optimizer,
        precision=c.precision,
        compile=c.compile,
        **correction_arguments(task.settings),
    )


def max_steps_of_a_run(settings: Settings) -> int:
    """Gradient steps of one run of the correction at most: one window where its points are averaged."""
    averages = settings.pacing.kind == "adaptive" and settings.pacing.iterate_average is not None
    return settings.correction.window if averages else settings.correction.max_steps


def correction_arguments(settings: Settings) -> dict[str, Any]:
    """The arguments that :class:`Correction` and :class:`StackedCorrection` have in common."""
    c = settings.correction
    return {
        "threshold": settings.correction_threshold,
        "window": c.window,
        "max_steps": max_steps_of_a_run(settings),
        "lr": c.lr,
        "momentum": c.momentum,
        "weight_decay": c.weight_decay,
        "nesterov": c.nesterov,
        "keep_momentum": c.keep_momentum,
        "cuda_graph": c.cuda_graph,
    }
