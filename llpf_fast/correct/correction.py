"""``Correction``: trains one path until the mean loss of a window of batches is at most the threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .. import ops
from ..batches.loss import ForwardLoss
from ..batches.precision import Precision, check_precision, float32_products
from ..batches.sampling import Batches, IndexedBatches
from ..errors import LLPFError
from ..flat import FlatParameters
from ..ops.loss_gate import FINAL, MEAN, WINDOW
from ..types import LossFunction
from .graphs import GateReading, GraphRunner, NotCapturableError, as_cuda_graph, as_while_graph
from .optimizer_step import OptimizerStep
from .sgd_step import SgdStep


class Trainer(Protocol):
    """What a search uses of its correction besides running it: momentum and learning rates."""

    @property
    def momentum_buffer(self) -> Tensor | None:
        """``[N]``, where the correction has momentum."""

    @property
    def keeps_momentum(self) -> bool:
        """Whether the momentum buffer outlives a correction."""

    def scale_lr(self, scale: Tensor | None) -> None:
        """Set the learning rate of every segment to the base times its factor, float64 ``[S]``; None: the base."""


CudaGraph = Literal["auto", "on", "off", "while"]


@dataclass(frozen=True)
class CorrectionResult:
    """What one correction did.

    Attributes:
        steps: gradient steps.
        loss: mean loss of the last window, or the loss that was not finite.
        met: whether ``loss`` is at most the threshold.
        finite: False where a loss became NaN or infinite; the parameters are useless then.
    """

    steps: int
    loss: float
    met: bool
    finite: bool = True


class Correction:
    """Trains ``flat.module`` in train mode; one iteration is draw, forward, loss, gate, backward, update.

    With ``sgd_``, batches drawn by counter and a model that consumes no random numbers, the iteration is captured once
    as a CUDA graph and replayed. Otherwise, and on a CPU, the host runs one iteration after the other. Steps, losses
    and values are the same.

    Args:
        flat: the module and its flat buffers.
        loss_fn: (model output, targets) -> scalar mean loss.
        batches: where batches come from.
        threshold, window, max_steps: the gate closes when the mean of the last ``window`` batch losses is at most
            ``threshold``, or after ``max_steps`` gradient steps; see :func:`llpf_fast.ops.loss_gate_`.
        lr, momentum, weight_decay, nesterov: of the fused update ``sgd_``; ignored with ``optimizer``.
        keep_momentum: carry the momentum buffer from one correction to the next.
        optimizer: any ``torch.optim`` optimiser over the module's parameters, instead of ``sgd_``. One whose step
            needs a closure (L-BFGS) takes a batch's gradient several times. Each is one of the steps that
            ``max_steps`` bounds and ``CorrectionResult`` counts; the loss that counts is the first.
        cuda_graph: ``auto`` captures where it can; ``on`` refuses to run without; ``off`` never does; ``while`` has the
            device repeat the iteration by itself (:class:`~.graphs.WhileGraph`), and warns where it cannot.
        precision: of the forward and backward passes; parameters and updates stay float32.
        compile: whether ``torch.compile`` compiles forward and loss.

    Raises:
        LLPFError: a precision that the device does not have; Nesterov without momentum; ``cuda_graph="on"`` where
            nothing can be captured.
    """

    def __init__(
        self,
        flat: FlatParameters,
        loss_fn: LossFunction,
        batches: Batches,
        *,
        threshold: float,
        window: int,
        max_steps: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        keep_momentum: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        cuda_graph: CudaGraph = "auto",
        precision: Precision = "float32",
        compile: bool = False,
    ) -> None:
        self._flat, self._batches = flat, batches
        device = flat.data.device
        check_precision(precision, device)
        if nesterov and not momentum and optimizer is None:
            raise LLPFError("correction.nesterov needs a correction.momentum above 0, such as 0.9")
        self._precision: Precision = precision
        forward_loss = ForwardLoss(flat.module, loss_fn, precision=precision, compile=compile)
        self._keep_momentum = keep_momentum
        self.momentum_buffer = torch.zeros_like(flat.data) if momentum and optimizer is None else None
        self._open_gate = ops.gate_state(window, device=device)
        self._rule = {"threshold": threshold, "window": window, "max_steps": max_steps}
        self._step = SgdStep(
            flat,
            forward_loss,
            state=self._open_gate.clone(),
            rule=self._rule,
            lr=torch.tensor(lr, dtype=torch.float64, device=device),
            hyper={"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov},
            momentum_buffer=self.momentum_buffer,
        )
        self._optimizer = None if optimizer is None else OptimizerStep(optimizer, flat, forward_loss, self._step)
        self._must_capture = cuda_graph == "on"
        self._make_replay = as_while_graph if cuda_graph == "while" else as_cuda_graph
        self._replays: GraphRunner | None = None
        reason = self._not_captured_because()
        if reason is not None and self._must_capture:
            raise LLPFError(f"correction.cuda_graph is on, but {reason}")
        if reason is not None and cuda_graph == "while":
            warnings.warn(f"correction.cuda_graph is while, but {reason}; the host runs step by step", stacklevel=2)
        self._may_capture = cuda_graph != "off" and reason is None

    def _not_captured_because(self) -> str | None:
        if self._flat.data.device.type != "cuda":
            return f"a {self._flat.data.device.type} has no CUDA graphs"
        if self._optimizer is not None:
            return "a torch optimiser does the updates"
        if not isinstance(self._batches, IndexedBatches) or not self._batches.draws_on_device:
            return "the batches are not drawn by counter from tensors on the device"
        return None

    @property
    def module(self) -> nn.Module:
        return self._flat.module

    @property
    def keeps_momentum(self) -> bool:
        """Whether a momentum buffer outlives a correction."""
        return self._keep_momentum and self.momentum_buffer is not None

    @property
    def captured(self) -> bool:
        """Whether the last correction was replays of a captured iteration."""
        return self._replays is not None

    def scale_lr(self, scale: Tensor | None) -> None:
        """Set the learning rate of every segment to ``lr`` times its factor, float64 ``[S]`` on the device; None: 1."""
        self._step.scale_lr(scale)

    def run(self, first_round: int, *, continued: bool = False, stop_at_nan: bool = False) -> CorrectionResult:
        """Train from batch ``first_round`` of the stream on, until the gate closes.

        Args:
            continued: this is more of the correction before: the momentum stays, the window begins anew.
            stop_at_nan: a loss that is not finite ends the correction (``finite`` is False) instead of raising.

        Raises:
            LLPFError: a loss became NaN or infinite.
        """
        if self.momentum_buffer is not None and not (self._keep_momentum or continued):
            self.momentum_buffer.zero_()
        self.module.train()
        # The caller may be under no_grad.
        with torch.enable_grad(), float32_products(self._precision, self._flat.data.device):
            replays = self._prepare_replays()
            self._step.state.copy_(self._open_gate)
            gate = self._run_on_host(first_round) if replays is None else self._run_replays(replays, first_round)
        if gate.finite:
            return CorrectionResult(gate.steps, gate.loss, gate.loss <= self._rule["threshold"])
        if stop_at_nan:
            return CorrectionResult(gate.steps, gate.loss, False, finite=False)
        raise LLPFError(
            f"the training loss became {gate.loss} in step {gate.steps} of the correction; "
            "try a smaller correction.lr or a smaller step"
        )

    def replay(self, make_replay: Callable[[SgdStep], Callable[[], None]]) -> None:
        """Run corrections as replays that ``make_replay`` makes of an iteration, on any device: for tests."""
        assert isinstance(self._batches, IndexedBatches)
        self._step.bind_batches(self._batches)
        self._replays = GraphRunner(self._step, make_replay)

    def _prepare_replays(self) -> GraphRunner | None:
        """The captured iteration, captured now if that has not been done; None where the host runs the iterations."""
        if self._replays is None and not self._may_capture:
            return None
        self._flat.ensure()
        try:
            if self._replays is None:
                assert isinstance(self._batches, IndexedBatches)
                self._step.bind_batches(self._batches)
                self._replays = GraphRunner(self._step, self._make_replay)
            self._replays.prepare()
        except LLPFError as error:
            self._replays, self._may_capture = None, False
            if self._must_capture:
                raise LLPFError(f"correction.cuda_graph is on, but {error}") from error
            if not (isinstance(error, NotCapturableError) and error.expected):
                warnings.warn(
                    f"the correction is not captured as a CUDA graph, and runs step by step: {error} "
                    "(correction.cuda_graph: off for silence)",
                    stacklevel=2,
                )
        return self._replays

    def _run_replays(self, replays: GraphRunner, first_round: int) -> GateReading:
        assert isinstance(self._batches, IndexedBatches)
        self._batches.seek(first_round)
        return replays.run()

    def _run_on_host(self, first_round: int) -> GateReading:
        batches, steps, state = 0, 0, self._step.state
        window, most = int(self._rule["window"]), self._rule["max_steps"]
        while True:
            steps += self._iterate(first_round + batches)
            # One transfer an iteration: decision, mean and newest loss.
            values = state.tolist()
            newest = values[WINDOW + batches % window]
            batches += 1
            if not math.isfinite(newest):
                return GateReading(steps, newest, closed=False, finite=False)
            if values[FINAL] or (batches >= window and steps >= most):
                return GateReading(steps, values[MEAN], closed=True, finite=True)

    def _iterate(self, round_: int) -> int:
        """Train on batch ``round_`` of the stream; returns how often its gradient was taken."""
        inputs, targets = self._batches.batch(round_)
        if self._optimizer is not None:
            return self._optimizer.train(inputs, targets)
        self._step.train(inputs, targets)
        return 1
