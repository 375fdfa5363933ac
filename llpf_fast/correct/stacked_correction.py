"""The correction of many paths: one forward, one backward and one update for all rows of a stack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..batches.precision import float32_products
from ..batches.sampling import IndexedBatches
from ..errors import LLPFError
from ..flat import FlatParameters
from ..ops.loss_gate import ACTIVE, FINAL, MEAN, STEPS, WINDOW
from ..types import LossFunction
from .correction import CorrectionResult, CudaGraph
from .graphs import WARM_UP, capture
from .stack import StackedStep

#: Iterations queued on a GPU between two reads of the gates, at most. A read costs some 20 microseconds of an idle
#: device and a microsecond of the host for each path; a path whose gate has closed waits for it.
_BLOCK_GPU = 4


class StackedCorrection:
    """Runs the corrections of up to ``paths`` paths in step with each other; each has a gate and ends by it.

    A path joins with :meth:`take` and trains from :meth:`StackRow.begin` until :meth:`iterate` reports its end. A
    row's update is that of :class:`~llpf_fast.correct.Correction` bit for bit. So are its forward and backward passes
    while there are fewer than ``least`` paths (they then run one after the other). Otherwise those differ in the last
    bits. A row's values do not depend on when the host reads the gates.

    Args:
        flat: of one module of the architecture; only its layout counts.
        batches: where every path's batches come from.
        paths: rows; memory is allocated for all of them.
        least: fewer paths than this run their passes one after the other.
        block: iterations between two reads of the gates, at most ``window``; the default: 1 on a CPU, where a row
            that waits costs as much as one that trains.
        loss_fn, threshold, ..., cuda_graph: see :class:`~llpf_fast.correct.Correction`.
    """

    def __init__(
        self,
        flat: FlatParameters,
        loss_fn: LossFunction,
        batches: IndexedBatches,
        *,
        paths: int,
        least: int = 2,
        block: int | None = None,
        threshold: float,
        window: int,
        max_steps: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        keep_momentum: bool = False,
        cuda_graph: CudaGraph = "auto",
    ) -> None:
        self.step = StackedStep(
            flat,
            loss_fn,
            batches,
            rows=paths,
            threshold=threshold,
            window=window,
            max_steps=max_steps,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        device = flat.data.device
        if cuda_graph == "on" and device.type != "cuda":
            raise LLPFError(f"correction.cuda_graph is on, but a {device.type} has no CUDA graphs")
        self._least, self._on_gpu, self._cuda_graph = least, device.type == "cuda", cuda_graph
        self._block = min(block or (_BLOCK_GPU if self._on_gpu else 1), window)
        self.base_lr, self.keeps_momentum = lr, keep_momentum and momentum != 0.0
        self.open_gate = ops.gate_state(window, device=device)
        self._paths: list[StackRow] = []
        self._graphs: dict[int, Callable[[], None]] = {}

    def take(self, flat: FlatParameters) -> StackRow:
        """Move the values, gradients and buffers of ``flat`` into a row."""
        path = StackRow(self, self.step.stack.take(flat))
        self._paths.append(path)
        self.step.lr[path.row] = self.base_lr
        if self.step.momentum_buffer is not None:
            self.step.momentum_buffer[path.row].zero_()
        return path

    def drop(self, path: StackRow) -> None:
        """Free the row of ``path``; the last path moves there."""
        here, last, step = path.row, self.step.stack.drop(path.row), self.step
        moved = self._paths.pop()
        if here != last:
            self._paths[here] = moved
            moved.row = here
            for rows in (step.lr, step.state, step.first, step.momentum_buffer):
                if rows is not None:
                    rows[here].copy_(rows[last])
        step.state[last].zero_()

    def iterate(self) -> list[tuple[StackRow, CorrectionResult | LLPFError]]:
        """Train all paths for an iteration, on a GPU for several; returns those whose correction ended, and how.

        Raises:
            LLPFError: the model or the loss fails on the data.
        """
        count, step = len(self._paths), self.step
        with torch.enable_grad(), float32_products("float32", step.state.device):
            if count < self._least:
                step.sequential()
            else:
                self._batched(count)
        ended = []
        # One transfer: on a GPU this is where the host waits.
        for path, values in zip(list(self._paths), step.state[:count].tolist(), strict=True):
            result = path.read_gate(values, step.rule)
            if result is not None:
                ended.append((path, result))
        return ended

    def _batched(self, count: int) -> None:
        width = self._width(count)
        gates_may_be_closed = self._block > 1 or width > count
        for _ in range(self._block):
            if self._on_gpu:
                self._replay(width)
            else:
                self.step.batched(width, gates_may_be_closed=gates_may_be_closed)

    def _width(self, count: int) -> int:
        """Rows that take part. On a GPU the capacity halved some times: a graph is captured for each width."""
        if not self._on_gpu:
            return count
        width = self.step.stack.capacity
        while width // 2 >= count:
            width //= 2
        return width

    def _replay(self, width: int) -> None:
        graph = self._graphs.get(width)
        if graph is None:
            graph = self._graphs[width] = self._make_replay(width)
        graph()

    def _make_replay(self, width: int) -> Callable[[], None]:
        """An iteration of ``width`` rows: captured, or a plain call where capturing is off or fails."""
        iteration = partial(self.step.batched, width, gates_may_be_closed=True)
        if self._cuda_graph == "off":
            return iteration
        state = self.step.state.clone()
        try:
            return self._captured(iteration)
        except Exception as error:  # a capture fails in as many ways as there are modules
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self._cuda_graph == "on":
                raise LLPFError(f"correction.cuda_graph is on, but {why}") from error
            warnings.warn(
                f"the stacked correction is not captured as a CUDA graph, and runs step by step: {why} "
                "(correction.cuda_graph: off for silence)",
                stacklevel=2,
            )
            return iteration
        finally:
            self.step.state.copy_(state)

    def _captured(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call`` as a CUDA graph. The calls before the capture run with closed gates and change only those."""
        device = self.step.state.device
        self.step.state.zero_()
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.device(device), torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        current.wait_stream(side)
        return capture(call, device).replay


class StackRow:
    """One path's row in a :class:`StackedCorrection`: a :class:`~.correction.Trainer` whose runs others drive."""

    def __init__(self, stacked: StackedCorrection, row: int) -> None:
        self._stacked, self.row = stacked, row
        self._stop_at_nan = False

    @property
    def momentum_buffer(self) -> Tensor | None:
        """``[N]``, a row."""
        rows = self._stacked.step.momentum_buffer
        return None if rows is None else rows[self.row]

    @property
    def keeps_momentum(self) -> bool:
        return self._stacked.keeps_momentum

    def scale_lr(self, scale: Tensor | None) -> None:
        """As :meth:`Correction.scale_lr <llpf_fast.correct.Correction.scale_lr>`."""
        base = self._stacked.base_lr
        self._stacked.step.lr[self.row] = base if scale is None else base * scale

    def begin(
        self, first_round: int, *, continued: bool = False, stop_at_nan: bool = False, seed: int | None = None
    ) -> None:
        """Train from batch ``first_round`` on; see :meth:`Correction.run <llpf_fast.correct.Correction.run>`.

        ``seed`` is that of the random numbers that the module draws itself, where the passes are sequential.
        """
        if seed is not None:
            self._stacked.step.stack.seed(self.row, seed)
        self._stop_at_nan = stop_at_nan
        self._stacked.step.state[self.row].copy_(self._stacked.open_gate)
        self._stacked.step.first[self.row].fill_(first_round)
        momentum = self.momentum_buffer
        if momentum is not None and not (self._stacked.keeps_momentum or continued):
            momentum.zero_()

    def read_gate(self, values: list[float], rule: dict[str, float]) -> CorrectionResult | LLPFError | None:
        """How the correction ended, from the gate's state; None where it has not."""
        steps, mean, window = int(values[STEPS]), values[MEAN], int(rule["window"])
        if not math.isfinite(mean):
            for step in range(max(0, steps - window), steps):
                loss = values[WINDOW + step % window]
                if not math.isfinite(loss):
                    return self._not_finite(step + 1, loss)
        if values[ACTIVE] != 0 and not values[FINAL]:
            return None
        return CorrectionResult(steps, mean, mean <= rule["threshold"])

    def _not_finite(self, steps: int, loss: float) -> CorrectionResult | LLPFError:
        if self._stop_at_nan:
            return CorrectionResult(steps, loss, False, finite=False)
        return LLPFError(
            f"the training loss became {loss} in step {steps} of the correction; "
            "try a smaller correction.lr or a smaller step"
        )
