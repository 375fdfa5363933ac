"""``LossEnclosure``: upper bounds of each sample's loss on pieces of a path."""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ...batches.batch import move_batch
from ...batches.data import TensorData
from ...batches.forward import forward
from ...batches.loss import LossReduction
from ...batches.precision import SharedSwitches, float32_products, loss_in
from ...errors import LLPFError
from ...path.polyline import Polyline, Position
from ..evaluator import Evaluator
from . import moving_rules, normalization_rules, piecewise_rules, rules  # noqa: F401  (they register themselves)
from .attention_rules import LogSoftmaxForm
from .form import AffineForm, NotEnclosedError, overflow_check
from .losses import LossBound
from .tensor import EnclosedTensor, SampleNumbers, network_run

#: Samples enclosed at a time, on a CPU and on a GPU. LeNet5, microseconds an image on one core that others slow down:
#: 111, 73, 60, 66 in batches of 32, 64, 125, 250; in float64 229, 197, 217, 325 (the caches hold less).
_BATCH_CPU, _BATCH_GPU = {torch.float32: 125, torch.float64: 64}, 2000
#: Pieces whose parameters stay in memory.
_CACHED_PIECES = 8


#: An entry of a network's state on a piece: its form, or a tensor of whole numbers; all entries by name.
Entry = AffineForm | Tensor
Parameters = dict[str, Entry]


@dataclass(frozen=True)
class Bounds:
    """Bounds of the numerators of units on one piece, float64 ``[n]`` on the CPU.

    Attributes:
        start, end: at every point of the piece a numerator is at most the chord between these. Infinite where nothing
            is known.
        start_estimate, end_estimate: the same without radii: about the numerators at both ends. What refining can gain
            is the difference.
    """

    start: Tensor
    end: Tensor
    start_estimate: Tensor
    end_estimate: Tensor


class LossEnclosure:
    """Bounds of the losses of a path's samples, in exact arithmetic, at all points of pieces of its segments.

    The bounded function is that of the network and loss in real arithmetic, with parameters and buffers on the straight
    segments between the waypoints, and inputs as the network gets them. Rounding in the computation of the bounds is
    part of them.

    Args:
        line: the path.
        evaluator: of the network, the loss and the samples; statistics "stored".

    Attributes:
        units: number of samples; of batches, where the data are batches.
        denominators: float64 ``[units]``: the loss of a set is sum(numerators) / sum(denominators).

    Raises:
        NotEnclosedError: an operation of the network or the loss has no rule; it is named.
    """

    def __init__(self, line: Polyline, evaluator: Evaluator) -> None:
        if evaluator.statistics != "stored":
            raise NotEnclosedError("BatchNorm statistics that are re-estimated at each point have no rule of enclosure")
        self._line, self._evaluator, self.device = line, evaluator, evaluator.device
        self._reduction = LossReduction(loss_in(evaluator.loss_fn, self.device, torch.float64))
        self._bound = LossBound(self._reduction)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[int, float, float, torch.dtype], Parameters] = OrderedDict()
        self.units, self.denominators = evaluator.units, evaluator.unit_denominators()
        self._names = self._named(evaluator.module_copy())
        self._try()

    @property
    def dtype(self) -> torch.dtype:
        """Of the bounds that are not ``precise``."""
        return self._evaluator.dtype

    def bounds(self, waypoint: int, start: float, end: float, units: Tensor, *, precise: bool = False) -> Bounds:
        """Bounds on the piece [start, end] of the segment ``waypoint`` -> ``waypoint + 1``.

        Args:
            start, end: fractions of the segment, 0 <= start < end <= 1.
            units: int64 ``[n]``.
            precise: compute in float64, at about 3.5 times the cost (LeNet5, one core).

        Raises:
            NotEnclosedError: as the constructor.
        """
        dtype = torch.float64 if precise else self.dtype
        parameters = self._parameters(waypoint, start, end, dtype)
        parts: list[list[Tensor]] = [[], [], [], []]
        with torch.no_grad(), float32_products("float32", self.device), _DIRECT_SUMS:
            for inputs, targets, whole in self._batches(units, dtype):
                for part, value in zip(parts, self._bound_batch(parameters, inputs, targets), strict=True):
                    part.append(value.sum(0, keepdim=True) if whole else value)
        return Bounds(*(torch.cat(part).cpu() if part else torch.empty(0, dtype=torch.float64) for part in parts))

    def losses(self, position: Position, units: Tensor) -> Tensor:
        """The numerators at one point in ordinary evaluation, float64 ``[n]`` on the CPU; infinite where NaN."""
        evaluator = self._evaluator.on_units(units)
        numerators = evaluator.by_unit(evaluator.with_losses(self._line.state(position))[1].numerators)
        return torch.nan_to_num(numerators, nan=torch.inf, posinf=torch.inf)

    def compare(self, numerators: Tensor) -> None:
        """Compare with the numerators of all units at the first waypoint, in a batch as large as those of bounds.

        Raises:
            NotEnclosedError: they differ by more than radii and rounding.
        """
        units = torch.arange(min(self.units, self._batch_size(self.dtype)))
        self._check_losses(self.bounds(0, 0.0, 2.0**-16, units), numerators[units])

    def _reads_past_exchange(self, position: Position, units: Tensor) -> bool:
        """Whether the output at one point is NaN because the module's copy holds NaN where the state should be."""
        state, module = self._line.state(position), self._module()
        plain = {name: state[key].to(self.device) for key, name in self._names.items()}
        plain = {name: v.to(self.dtype) if v.is_floating_point() else v for name, v in plain.items()}
        for inputs, _, _ in self._batches(units, self.dtype):
            output = forward(lambda *values, **named: functional_call(module, plain, values, named), inputs)
            finite = all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
            if not finite and bool(self.losses(position, units).isfinite().all()):
                return True
        return False

    def _check_losses(self, bounds: Bounds, losses: Tensor) -> None:
        # Where radii are large, estimates are rough.
        allowed = 1e-4 * bounds.start.abs() + 1e-5 + (bounds.start - bounds.start_estimate)
        if bool(((losses - bounds.start_estimate).abs() > allowed).any()):
            raise NotEnclosedError(
                f"the losses in {self.dtype} are not those of exact arithmetic, or the enclosure reads the network in "
                "another way"
            )

    def _bound_batch(self, parameters: Parameters, inputs: Any, targets: Any) -> list[Tensor]:
        form = self._output(parameters, inputs, targets)
        logits = isinstance(form, LogSoftmaxForm) and self._bound.takes_logits
        if isinstance(form, LogSoftmaxForm) and logits:
            form = form.logits
        if not isinstance(targets, Tensor):
            raise NotEnclosedError("targets that are not one tensor have no rule of enclosure")
        targets = targets.double() if targets.is_floating_point() else targets
        left, right = form.left.double(), form.right.double()
        radius = form.radius
        if radius is None or form.rounding:
            radius = form.full_radius()
        radius = radius.double().expand(left.shape)
        none = torch.zeros_like(radius)
        # Both ends in one call: a call costs more than the losses of a batch.
        ends, targets = torch.cat([left, right]), torch.cat([targets, targets])
        bounds = (self._bound.upper(ends, torch.cat([e, e]), targets, logits=logits) for e in (radius, none))
        return [end for both in bounds for end in both.chunk(2)]

    def _output(self, parameters: Parameters, inputs: Any, targets: Any) -> AffineForm:
        module = self._module()

        def enclosed(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return EnclosedTensor(AffineForm(leaf, leaf), batched=True)
            if not isinstance(leaf, Tensor) or leaf.is_complex() or not leaf.dim():
                raise NotEnclosedError(f"inputs of type {type(leaf).__name__} have no rule of enclosure")
            return SampleNumbers(leaf)

        def run(*values: Any, **named: Any) -> Any:
            tensors = {
                name: EnclosedTensor(value, batched=False) if isinstance(value, AffineForm) else value
                for name, value in parameters.items()
            }
            return functional_call(module, tensors, values, named)

        try:
            with network_run(len(targets)), overflow_check() as passed:
                output = forward(run, pytree.tree_map(enclosed, inputs))
                bounded = passed()
        except NotEnclosedError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, NotEnclosedError):
                raise cause from None
            raise NotEnclosedError(f"the network's forward cannot be enclosed: {error}") from error
        if not isinstance(output, EnclosedTensor):
            raise NotEnclosedError("the network's output is not one tensor that depends on its parameters or inputs")
        form = output.form
        if not output.batched or output.samples_at or form.shape[0] != len(targets):
            raise NotEnclosedError("the network's output does not have one row a sample")
        if not bounded:
            infinite = torch.full_like(form.left, torch.inf)
            form = AffineForm(form.left, form.right, infinite)
        return form

    def _batches(self, units: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, Any, bool]]:
        """(inputs, targets, whether they are one unit) of the chosen units."""
        evaluator = self._evaluator
        if evaluator.by_sample:
            data = evaluator.data
            assert isinstance(data, TensorData)
            for part in units.split(self._batch_size(dtype)):
                yield (*self._moved(*data.take(part), dtype), False)
        else:
            for unit in units.tolist():
                inputs, targets, _ = evaluator.batches[unit]
                yield (*self._moved(inputs, targets, dtype), True)

    def _moved(self, inputs: Any, targets: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        """In ``dtype``, with the values that the network gets: those of the evaluator's dtype."""
        return move_batch(*move_batch(inputs, targets, self.device, self.dtype), self.device, dtype)

    def _batch_size(self, dtype: torch.dtype) -> int:
        return _BATCH_CPU[dtype] if self.device.type == "cpu" else _BATCH_GPU

    def _module(self) -> nn.Module:
        """The calling thread's copy of the module: a functional call exchanges its parameters for a while.

        Its parameters and buffers are NaN. What the network reads past the exchange (a parameter in a list or a
        closure) so gives no bound, instead of that of another point.
        """
        if not hasattr(self._local, "module"):
            copied = self._evaluator.module_copy()
            state = copied.state_dict(keep_vars=True)
            for name in self._names:
                if state[name].is_floating_point():
                    state[name].data.fill_(torch.nan)
            self._local.module = copied
        module: nn.Module = self._local.module
        return module

    def _named(self, module: nn.Module) -> dict[str, str]:
        """Name of each entry of the state -> the name under which the module takes it.

        Of tied parameters the last entry counts, as when the state is loaded.
        """
        entries = {key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        owners = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}
        names: dict[str, str] = {}
        for key, value in entries.items():
            if id(value) not in owners:
                raise NotEnclosedError(f"the entry {key} of the state is no parameter or buffer of the network")
            names[key] = owners[id(value)]
        last = {name: key for key, name in names.items()}
        return {key: name for name, key in last.items()}

    def _parameters(self, waypoint: int, start: float, end: float, dtype: torch.dtype) -> Parameters:
        key = (waypoint, start, end, dtype)
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key]
        a, b = self._line.waypoint(waypoint), self._line.waypoint(waypoint + 1)
        made = {name: self._parameter(key, a[key], b[key], start, end, dtype) for key, name in self._names.items()}
        with self._lock:
            self._pieces[key] = made
            while len(self._pieces) > _CACHED_PIECES:
                self._pieces.popitem(last=False)
        return made

    def _parameter(self, name: str, a: Tensor, b: Tensor, start: float, end: float, dtype: torch.dtype) -> Entry:
        """One entry of the state on a piece: the exact values are within two roundings of the form."""
        if a.is_complex():
            raise NotEnclosedError(f"the complex tensor {name} has no rule of enclosure")
        if not a.is_floating_point():
            if not torch.equal(a, b) and name not in self._evaluator.counters:
                raise NotEnclosedError(f"the whole numbers of {name} change along the path")
            return a.to(self.device)
        first, second = a.to(self.device, torch.float64), b.to(self.device, torch.float64)
        largest = torch.maximum(first.abs(), second.abs())
        # The interpolation in float64 rounds by up to 2^-50 of the larger endpoint, which may exceed the value itself.
        # Magnitudes are inflated so that this is within the number of roundings below.
        if dtype == torch.float64:
            rounding, inflation, floor = 2.0**13, 2.0**-10, 2.0**-900
        else:
            rounding, inflation, floor = 2.0, 2.0**-26, 2.0**-100
        if torch.equal(first, second):
            left = first.to(dtype)
            right = left
        else:
            left, right = (first + (second - first) * at for at in (start, end))
            left, right = left.to(dtype), right.to(dtype)
        magnitude = torch.maximum(left.abs(), right.abs()).double().add(largest, alpha=inflation).add_(floor)
        magnitude = magnitude.mul_(1 + 2.0**-22).to(dtype)
        return AffineForm(left, right, None, rounding, magnitude)

    def _try(self) -> None:
        """Compares bounds of a few units on a narrow piece of each kind of segment with their ordinary losses.

        A network that mixes the samples of a batch, reads its size, draws random numbers or changes from call to call
        has other losses of the same units in another order, in another batch, or the next time.
        """
        check_products(self.device, self.dtype)
        # Units that count: the loss of others alone is 0 / 0.
        few = self.denominators.nonzero().flatten()[:4]
        if not len(few):
            raise NotEnclosedError("no sample has a weight in the loss")
        tried: set[frozenset[str]] = set()
        for waypoint in range(self._line.segments):
            a, b = self._line.waypoint(waypoint), self._line.waypoint(waypoint + 1)
            changed = frozenset(name for name in self._names if not torch.equal(a[name], b[name]))
            if not changed or changed in tried:
                continue
            tried.add(changed)
            middle = Position(waypoint, 0.5)
            try:
                first, again = self.losses(middle, few), self.losses(middle, few)
                turned, alone = self.losses(middle, few.flip(0)).flip(0), self.losses(middle, few[:1])
            except LLPFError as error:
                raise NotEnclosedError(f"the samples cannot be evaluated in other batches: {error}") from error
            close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-5)
            if not (torch.equal(first, again) and close(first, turned) and close(first[:1], alone)):
                raise NotEnclosedError(
                    "the loss of a sample depends on the others of its batch, or differs from one call to the next"
                )
            # Here only: later other threads change torch's global state at the same time.
            before = torch.random.get_rng_state()
            bounds = self.bounds(waypoint, 0.5, 0.5 + 2.0**-16, few, precise=True)
            if not torch.equal(before, torch.random.get_rng_state()):
                raise NotEnclosedError("the network draws random numbers, which differ from batch to batch")
            if not bool(bounds.start.isfinite().all()):
                if self._reads_past_exchange(middle, few):
                    raise NotEnclosedError(
                        "the network reads parameters past its modules (from a list or a closure): no rule of enclosure"
                    )
                continue  # an overflow: the bounds stay infinite, and the pieces open
            excess = float(bounds.start.sum() - first.sum())
            if bool(first.isfinite().all()) and excess > len(few) + 10 * float(first.abs().sum()):
                raise NotEnclosedError(
                    "the network is too deep for bounds: on a piece of 1/65536 of a segment, in float64, those of "
                    f"{len(few)} losses exceed them by {excess:.3g} in sum"
                )
            self._check_losses(bounds, first)


def _switch_to_sums(stack: contextlib.ExitStack) -> None:
    stack.enter_context(torch.backends.nnpack.flags(enabled=False))
    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    if platform.machine().lower() not in ("x86_64", "amd64"):
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))


#: Convolutions as sums of products inside, so that the bounds of their rounding hold. NNPACK and cuDNN may use
#: Winograd's algorithm, whose error is not bounded by that of a sum. oneDNN on x86 is asked by torch for direct
#: convolution; elsewhere it is switched off.
_DIRECT_SUMS = SharedSwitches(_switch_to_sums)


def check_products(device: torch.device, dtype: torch.dtype) -> None:
    """Raise NotEnclosedError where products are computed with fewer bits than ``dtype`` has.

    Products and sums of whole numbers below 2^24 (2^53) are exact, unless something outside torch's settings lets the
    libraries round operands (TF32, bfloat16) or transform them (Winograd's algorithm on tiles of 4 and more).
    """
    bits = 13 if dtype == torch.float32 else 40
    generator = torch.Generator().manual_seed(0)
    shapes = (16, 8, 8, 8), (8, 8, 3, 3)
    x, w = (torch.randint(-(2**bits), 2**bits, shape, generator=generator).to(device, torch.int64) for shape in shapes)
    x = x % 2**4
    with torch.no_grad(), float32_products("float32", device), _DIRECT_SUMS:
        computed = (
            torch.nn.functional.conv2d(x.to(dtype), w.to(dtype)),
            x.flatten(1).to(dtype) @ w.flatten()[:512].to(dtype),
        )
    patches = torch.nn.functional.unfold(x.double().cpu(), 3)
    expected = (
        (w.double().cpu().flatten(1) @ patches).view(16, 8, 6, 6),
        (x.flatten(1).double().cpu() @ w.flatten()[:512].double().cpu()),
    )
    if any(not torch.equal(one.double().cpu(), other) for one, other in zip(computed, expected, strict=True)):
        raise NotEnclosedError(f"products of {dtype} on {device} are computed with fewer bits than the dtype has")
