"""``SearchSetup``: settings, network and data of ``llpf find``, used for each of its paths; results in words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError
from .options import choose_device, set_threads
from .output import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ..find import FindResult, SearchJob, StackedFinder, TickProgress
    from ..find.pairing import Pair
    from ..settings import Settings

#: Settings that may name code.
_CODE = ("model", "data", "optimizer", "is_norm")


class SearchSetup:
    """Settings, network and data of a recipe, and searches with them.

    Raises:
        LLPFError: unknown recipe, model, data, loss, optimiser, norm rule or device; settings that cannot work.
    """

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str] = (),
        *,
        data_dir: str | None = None,
        loss: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        download: bool = False,
    ) -> None:
        from ..recipes import load_recipe
        from ..user_code import absolute

        settings = load_recipe(recipe, overrides)
        for key in ("model", "data"):
            if not getattr(settings, key):
                raise LLPFError(f"recipe {recipe!r} names no {key}; add it to the file or pass --{key} NAME")
        # Absolute paths, because a run is verified from any folder.
        recipe_folder = Path(os.path.expanduser(recipe)).parent
        absolute_names: dict[str, Any] = {key: absolute(getattr(settings, key), recipe_folder) for key in _CODE}
        self.settings: Settings = replace(settings, **absolute_names)
        self._recipe, self._data_dir, self._download = recipe, data_dir, download
        self._device = choose_device(device)
        self._loss = None if loss is None else absolute(loss, recipe_folder)
        self._train: Any = None
        self._load_model(threads)

    def _load_model(self, threads: int | None) -> None:
        from ..data import dataset_classes
        from ..find.build import user_norm_rule, user_optimizer
        from ..models import build_model
        from ..user_code import loss_function

        self._model = build_model(self.settings.model, classes=dataset_classes(self.settings.data))
        self._loss_fn: Callable[..., Tensor] | None = None if self._loss is None else loss_function(self._loss)
        # The finder loads them again; here errors come before the first of many paths begins.
        user_optimizer(self.settings)
        user_norm_rule(self.settings)
        set_threads(threads, self._model)

    def _data(self) -> Any:
        """The training data, read once, after everything that is cheap to check."""
        from ..batches import TensorData, as_data
        from ..data import load_dataset
        from ..models import check_images

        if self._train is not None:
            return self._train

        data = load_dataset(self.settings.data, self._data_dir, download=self._download)
        self._train = as_data(data.train)
        if isinstance(self._train, TensorData):
            check_images(self.settings.model, self._train.inputs)
        return self._train

    def check_destination(self, given: bool) -> None:
        """Raise LLPFError where the mode needs a destination and none is ``given``, or takes none and one is."""
        mode, has_radii = self.settings.mode, bool(self.settings.spheres.radii)
        sphere = self.settings.goal == "sphere"
        if given and not sphere and self.settings.goal != "model":
            raise LLPFError(f"mode {mode} leads to no other model: name no destination")
        if not given and self.settings.goal == "model":
            raise LLPFError(f"llpf find needs a destination (mode {mode}); see llpf find --help")
        if sphere and given == has_radii:
            problem = "both are given" if given else "neither is given"
            raise LLPFError(f"mode {mode} takes a destination that lies on its spheres, or spheres.radii: {problem}")

    @property
    def endless(self) -> bool:
        """Whether the mode has no destination to arrive at, so that a search takes ``max_ticks``."""
        return self.settings.goal == "none"

    def load(self, file: str | os.PathLike[str]) -> dict[str, Tensor]:
        """The state in ``file``. LLPFError where it is not of the recipe's network or not finite."""
        from ..path.endpoint import load_endpoint

        return load_endpoint(file, self._model, "the file", model=f"model {self.settings.model}")

    def run(
        self,
        pair: Pair,
        out: str | os.PathLike[str],
        *,
        resume: bool = False,
        progress: Callable[[TickProgress], None] | None = None,
    ) -> FindResult:
        """Search one path into ``out``. LLPFError as :class:`~llpf_fast.find.PathFinder` raises them."""
        from ..find import PathFinder
        from ..flat.copying import copied

        if resume:
            self.check_loss(out)
        start, destination = self._load_pair(pair)
        finder = PathFinder(
            copied(self._model, f"model {self.settings.model}"),
            start,
            destination,
            settings=self.settings,
            train=self._data(),
            loss_fn=self._loss_fn,
            device=self._device,
            out=out,
            progress=progress,
            resume=resume,
            provenance=self._provenance(pair),
        )
        return finder.run()

    def _load_pair(self, pair: Pair) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        return self.load(pair.start), None if pair.destination is None else self.load(pair.destination)

    def job(
        self, pair: Pair, out: str | os.PathLike[str], *, resume: bool, progress: Callable[[TickProgress], None]
    ) -> SearchJob:
        """The same search as :meth:`run`, for :meth:`stacked_finder`."""
        from ..find import SearchJob

        if resume:
            self.check_loss(out)
        provenance = self._provenance(pair)
        return SearchJob(lambda: self._load_pair(pair), out, resume=resume, provenance=provenance, progress=progress)

    def stacked_finder(self, parallel: int | None, paths: int) -> StackedFinder | None:
        """A finder that searches ``parallel`` of ``paths`` paths at a time; None to search them one by one.

        Raises:
            LLPFError: ``parallel`` is above 1 and the network cannot be stacked.
        """
        from ..correct.stackable import NotStackableError
        from ..find import StackedFinder, choose_parallel

        count = choose_parallel(self._model, self._device, paths) if parallel is None else min(parallel, paths)
        if count <= 1:
            return None
        try:
            finder = StackedFinder(
                self._model,
                settings=self.settings,
                train=self._data(),
                parallel=count,
                loss_fn=self._loss_fn,
                device=self._device,
            )
        except NotStackableError:
            if parallel is not None:
                raise
            return None
        # A stack is not faster where it must repeat an operation row by row.
        return None if parallel is None and finder.slow else finder

    def check_loss(self, folder: str | os.PathLike[str]) -> None:
        """Raise LLPFError where the run in ``folder`` has another loss."""
        from ..path import RunDirectory

        recorded = (RunDirectory.open(folder).run.get("provenance") or {}).get("loss")
        if recorded != self._loss:
            raise LLPFError(f"cannot resume {folder}: its loss is {recorded or 'cross_entropy'}, not {self._loss}")

    def _provenance(self, pair: Pair) -> dict[str, Any]:
        from ..user_code import file_digest

        names = (*(getattr(self.settings, key) for key in _CODE), self._loss or "")
        digests = {name: digest for name in names if (digest := file_digest(name))}
        return {
            "recipe": self._recipe,
            "start": os.path.abspath(pair.start),
            "destination": None if pair.destination is None else os.path.abspath(pair.destination),
            "data_dir": None if self._data_dir is None else os.path.abspath(self._data_dir),
            **({} if self._loss is None else {"loss": self._loss}),
            **({"code_sha256": digests} if digests else {}),
        }


def describe_tick(at: TickProgress) -> str:
    """Loss, share of the distance that is left, gradient steps so far."""
    return f"loss {at.loss:.4f}  distance left {at.distance:.1%}  {at.steps:,} gradient steps"


def describe_end(result: FindResult, endless: bool) -> tuple[str, bool]:
    """How a search ended, and whether that is success; ``endless`` as :attr:`SearchSetup.endless`."""
    if result.arrived:
        return "arrived", True
    if result.ended == "stuck":
        return ("went as far as the smallest step could", True) if endless else ("got stuck", False)
    return ("did all its ticks", True) if endless else ("did not arrive", False)


def describe_result(result: FindResult, endless: bool = False) -> str:
    """How a search ended, with its numbers, in a line; then a line for each note and one about mending."""
    first = (
        f"{result.folder}: {describe_end(result, endless)[0]} after {result.ticks:,} ticks, {result.sgd_steps:,} "
        f"gradient steps, {duration(result.seconds)}; {result.waypoints:,} waypoints"
    )
    mending = [f"  {result.mending}"] if result.mending else []
    return "\n".join([first, *(f"  note: {note}" for note in result.notes), *mending])
