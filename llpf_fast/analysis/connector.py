"""Connectors: points that join several optima at low loss, their search, training and certificate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batches, FixedSamples, LossReduction, as_data, compute_loss, materialize, training_batches
from ..batches.fixed_samples import MaterializedData, fixed_subset, sample_count
from ..batches.forward import default_batch_size
from ..batches.statistics import STATISTICS_SIZE, reestimate
from ..correct import Correction
from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..path import save_model_file
from ..path.durable import write_json, writing
from ..path.plain_values import finite_or_none
from ..types import LossFunction, ProgressCallback
from .complex_certificate import ComplexCertificate, certify_complex
from .networks import Networks
from .problem import Problem
from .simplices import Complex, ComplexKind, Hyperplane
from .vector_loss import seeded

_REPORT_EVERY = 50


def train_surface(
    flat: FlatParameters,
    values: Tensor,
    planes: Sequence[Hyperplane],
    simplices: Sequence[Sequence[int]],
    loss_fn: LossFunction,
    batches: Batches,
    *,
    steps: int,
    lr: float,
    momentum: float,
    seed: int,
    progress: Callable[[int, str], None] | None = None,
) -> Tensor:
    """Lower the mean loss over all simplices by moving the vertices that have a plane, the last ``len(planes)``.

    Each step draws a simplex and a uniformly distributed point x = sum_v w_v V_v of it, and moves vertex v along
    w_v times the gradient at x, as curve finding does for one line (Garipov et al., arXiv 1802.10026, eq. 2, over
    simplices instead: ours), inside the vertex's plane. ``lr`` is multiplied by the number of vertices of a simplex,
    for the weights are that much smaller than 1, and falls linearly to 0.

    Args:
        values: ``[V, N]`` flat vertices; not changed. Returns their new values.

    Raises:
        LLPFError: the loss is not finite.
    """
    fixed = len(values) - len(planes)
    values = values.clone()
    velocity = torch.zeros_like(values[fixed:])
    draws = torch.Generator().manual_seed(seed)
    recent = 0.0
    flat.module.train()
    for step in range(steps):
        simplex = simplices[int(torch.randint(len(simplices), (), generator=draws))]
        # Normalised exponentials are uniform on the simplex.
        weights = torch.empty(len(simplex), dtype=torch.float64).exponential_(generator=draws)
        weights = (weights / weights.sum()).to(values)
        flat.data.copy_(weights @ values[list(simplex)])
        flat.zero_grad()
        loss = compute_loss(flat.module, loss_fn, *batches.batch(step))
        loss.backward()
        flat.ensure_gradients()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LLPFError(f"the training loss became {value} in surface step {step + 1}; try a smaller lr ({lr})")
        velocity.mul_(momentum)
        rate = lr * len(simplex) * (1 - step / steps)
        for vertex, weight in zip(simplex, weights, strict=True):
            if vertex >= fixed:
                velocity[vertex - fixed].add_(flat.grad, alpha=float(weight))
        for number, plane in enumerate(planes):
            plane.project_point_(values[fixed + number].sub_(velocity[number], alpha=rate))
        recent += (value - recent) / min(step + 1, _REPORT_EVERY)
        if progress is not None and ((step + 1) % _REPORT_EVERY == 0 or step + 1 == steps):
            progress(step + 1, f"surface  loss {recent:.4f}")
    return values


def certify_connector(
    problem: Problem,
    connector: Connector,
    *,
    threshold: float,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> ComplexCertificate:
    """Certify ``connector`` on the training set of ``problem`` and store the certificate in it.

    All points are measured on ``problem.samples("train")``; where that is a subset, the worst points and those near the
    threshold on all training samples. BatchNorm statistics are re-estimated at every point: interpolated ones belong to
    no network. ``options``: see :func:`certify_complex`.
    """
    statistics = problem.statistics[-1]
    full = None
    if sample_count(problem.measured) < sample_count(problem.train):
        full = problem.like(samples=0).evaluator("train", statistics=statistics)
    connector.certificate = certify_complex(
        connector.vertices,
        connector.complex.simplices,
        problem.evaluator("train", statistics=statistics),
        None if problem.test is None else problem.evaluator("test", statistics=statistics),
        threshold=threshold,
        full_train=full,
        progress=progress,
        **options,
    )
    return connector.certificate


@dataclass(frozen=True)
class ConnectorSettings:
    """How the points are searched.

    A point starts at the centroid of the optima that it joins and is trained inside its :class:`Hyperplane` until the
    mean loss of ``window`` batches is at most ``aim``, or for ``steps`` gradient steps; then ``surface_steps`` steps
    train all points at once, at random points of the simplices. SGD; ``lr`` falls linearly to 0 over the surface steps.
    """

    kind: ComplexKind = "simplices"
    aim: float = 0.01
    steps: int = 1000
    window: int = 50
    surface_steps: int = 0
    lr: float = 0.02
    momentum: float = 0.9
    batch_size: int = 64
    seed: int = 0

    def validate(self) -> None:
        """LLPFError naming a value that cannot work."""
        for name in ("steps", "window", "batch_size"):
            if getattr(self, name) < 1:
                raise LLPFError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.surface_steps < 0:
            raise LLPFError(f"surface_steps must be 0 or more, got {self.surface_steps}")
        if not 0 < self.lr < float("inf"):
            raise LLPFError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise LLPFError(f"momentum must be at least 0 and below 1, got {self.momentum}")


@dataclass
class Connector:
    """A complex over the optima (first) and the points that join them, as networks; ``records``: each point's search.

    ``certificate`` is None until :func:`certify_connector`.
    """

    complex: Complex
    vertices: Networks
    settings: ConnectorSettings
    records: list[dict[str, Any]] = field(default_factory=list)
    certificate: ComplexCertificate | None = None

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file, without the evaluated points."""
        certificate = None if self.certificate is None else self.certificate.as_dict()
        if certificate is not None:
            del certificate["points"]
        return {
            "kind": self.complex.kind,
            "vertices": [self.complex.label(v) for v in range(len(self.vertices))],
            "settings": asdict(self.settings),
            "search": self.records,
            "certificate": certificate,
        }

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """A row a simplex (highest loss), and a row a vertex; needs the certificate."""
        assert self.certificate is not None
        label = self.complex.label
        simplices = zip(self.complex.simplices, self.certificate.simplex_max, strict=True)
        norms = self.vertices.vectors().norm(dim=1)
        return {
            "simplices": [
                {"simplex": " – ".join(map(label, simplex)), "highest loss": highest} for simplex, highest in simplices
            ],
            "vertices": [
                {"vertex": label(v), "name": self.vertices.names[v], "loss": loss, "norm": float(norms[v])}
                for v, loss in enumerate(self.certificate.vertex_loss)
            ],
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write every vertex as a safetensors file and ``connector.json`` (faces, simplices, settings, certificate)."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files = []
        for vertex, state in enumerate(self.vertices):
            files.append(f"vertex-{self.complex.label(vertex).replace('+', '-')}.safetensors")
            save_model_file(folder / files[-1], state)
        content = {
            "optima": self.vertices.names[: self.complex.optima],
            "kind": self.complex.kind,
            "faces": [list(face) for face in self.complex.faces],
            "simplices": [list(simplex) for simplex in self.complex.simplices],
            "files": files,
            "settings": asdict(self.settings),
            "records": self.records,
            "certificate": None if self.certificate is None else self.certificate.as_dict(),
        }
        write_json(folder / "connector.json", finite_or_none(content))
        return folder / "connector.json"


def find_connector(
    module: nn.Module,
    optima: Networks,
    loss_fn: LossFunction,
    train: Any,
    settings: ConnectorSettings | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Connector:
    """Search the points of a :class:`Complex` over ``optima`` (arXiv 1906.04724's connectors of two; several: ours).

    Args:
        module: the architecture, on the device to compute on; copied, without wrappers.
        optima: two or more networks.
        loss_fn: (model output, targets) -> scalar loss of a batch, which is compared with ``settings.aim``.
        train: anything that :func:`llpf_fast.batches.as_data` takes, or samples in memory.
        progress: called after every window of steps.

    Returns:
        The connector, without a certificate.

    Raises:
        LLPFError: fewer than two optima, two equal ones, a setting that cannot work, a loss that is not finite or that
            adds up over a batch; as ``as_data``.
    """
    settings = ConnectorSettings() if settings is None else settings
    settings.validate()
    reduction = LossReduction(loss_fn)
    if reduction.kind == "sum":
        raise LLPFError(f"the loss {reduction.name} adds up over a batch, so no batch can reach the aim: take the mean")
    data = materialize(as_data(train))
    shape = Complex.of(len(optima), settings.kind)
    module = unwrapped(module)
    flat = FlatParameters(copied(module))

    def batches(vertex: int) -> Batches:
        device, dtype = flat.data.device, flat.data.dtype
        batch_size, seed = settings.batch_size, settings.seed
        return training_batches(as_data(data), batch_size, device, dtype, seed=seed, path=vertex, reduction=reduction)

    corners = torch.stack([flat.flatten(state) for state in optima])
    planes = [Hyperplane(corners[list(face)]) for face in shape.faces[len(optima) :]]
    total = len(planes) * settings.steps + settings.surface_steps
    values, states, records = list(corners), list(optima.states), []
    for number, plane in enumerate(planes):
        vertex = len(optima) + number
        flat.load(optima.combine(_centroid(shape.faces[vertex], len(optima))))

        def report(steps: int, loss: float, number: int = number, vertex: int = vertex) -> None:
            if progress is not None:
                text = f"point {shape.label(vertex)}  loss {loss:.4f}"
                progress(number * settings.steps + steps, total, text)

        record = _train_point(flat, plane, loss_fn, batches(vertex), settings, report)
        records.append({"point": shape.label(vertex), **record, "distance_off_plane": plane.distance(flat.data)})
        values.append(flat.data.clone())
        states.append(flat.state_dict())
    if settings.surface_steps:
        done = total - settings.surface_steps
        with seeded(settings.seed, flat.data.device):  # dropout's numbers
            surface = train_surface(
                flat,
                torch.stack(values),
                planes,
                shape.simplices,
                loss_fn,
                batches(len(shape.faces)),
                steps=settings.surface_steps,
                lr=settings.lr,
                momentum=settings.momentum,
                seed=settings.seed,
                progress=None if progress is None else lambda step, text: progress(done + step, total, text),
            )
        for vertex in range(len(optima), len(shape.faces)):
            states[vertex] = _state_at(flat, surface[vertex], data)
    names = [*optima.names, *(shape.label(v) for v in range(len(optima), len(shape.faces)))]
    return Connector(shape, Networks(states, names, module), settings, records)


def _centroid(face: tuple[int, ...], count: int) -> list[float]:
    return [1 / len(face) if i in face else 0.0 for i in range(count)]


def _train_point(
    flat: FlatParameters,
    plane: Hyperplane,
    loss_fn: LossFunction,
    batches: Batches,
    settings: ConnectorSettings,
    report: Callable[[int, float], None],
) -> dict[str, Any]:
    """Correct ``flat`` (at the centroid) inside ``plane``; what it took."""
    optimizer = torch.optim.SGD(flat.module.parameters(), lr=settings.lr, momentum=settings.momentum)

    def before(*_: Any) -> None:
        flat.ensure_gradients()
        plane.project_gradient_(flat.grad)

    def after(*_: Any) -> None:
        plane.project_point_(flat.data)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    # A correction in windows, repeated until the mean loss of a whole window is low.
    correction = Correction(
        flat,
        loss_fn,
        batches,
        threshold=settings.aim,
        window=settings.window,
        max_steps=settings.window,
        lr=settings.lr,
        optimizer=optimizer,
    )
    steps, first = 0, None
    while True:
        corrected = correction.run(steps, continued=steps > 0)
        steps += corrected.steps
        first = corrected.loss if first is None else first
        report(min(steps, settings.steps), corrected.loss)
        if corrected.met or steps >= settings.steps:
            return {
                "steps": steps,
                "first_window_loss": first,
                "last_window_loss": corrected.loss,
                "met": corrected.met,
            }


def _state_at(flat: FlatParameters, values: Tensor, data: MaterializedData) -> dict[str, Tensor]:
    """The state at ``values`` with BatchNorm statistics re-estimated there: training was all over the surface."""
    flat.data.copy_(values)
    device, dtype = flat.data.device, flat.data.dtype
    subset = fixed_subset(data, STATISTICS_SIZE)
    samples = FixedSamples(subset, batch_size=default_batch_size(device), device=device, dtype=dtype)
    with torch.no_grad():
        reestimate(flat.module, samples)
    return flat.state_dict()
