"""The correction as replays of one captured iteration: the host queues blocks of them and looks at the gate between."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import LLPFError
from ..ops.loss_gate import LAST, MEAN, OPEN, ROUNDS, WINDOW
from .cuda_graph import capture
from .random_states import RandomStates
from .step import Step
from .while_graph import UntilClosed, WhileGraph, while_unsupported

#: Seconds of queued iterations between two looks. A look costs some 20 microseconds of an idle device; replays queued
#: after the gate closed cost half a block on average.
_LOOK_EVERY = 5e-4
#: Iterations before the capture: libraries choose their kernels and take their workspaces in the first ones.
_WARM_UP = 3


class NotCapturableError(LLPFError):
    """The iteration cannot be replayed. ``expected``: by its nature (random numbers), not by a failure."""

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


@dataclass(frozen=True)
class Seen:
    """The gate at a look: rounds that counted, and their mean loss, or that of the round that was not finite."""

    rounds: int
    loss: float
    closed: bool
    finite: bool


def as_cuda_graph(step: Step) -> Callable[[], None]:
    """Capture ``step`` on a side stream; a function that queues one replay on the current stream."""
    return capture(step, step.flat.data.device).replay


def as_while_graph(step: Step) -> Callable[[], None]:
    """Capture ``step`` on a side stream; a :class:`WhileGraph` of it, else (with a warning) a replay on the stream."""
    reason, rule = while_unsupported(), step.rule
    graph = capture(step, step.flat.data.device, keep_graph=reason is None)
    if reason is None:
        try:
            return WhileGraph(graph, step.state, min_rounds=rule["min_rounds"], max_rounds=rule["max_rounds"])
        except LLPFError as error:
            reason = str(error)
    warnings.warn(f"correction.capture is while, but {reason}; the host queues replays instead", stacklevel=2)
    return graph.replay


class Replays:
    """Runs corrections by replaying ``step``; rounds, losses and values are those of one call after the other.

    Args:
        step: ready to be called.
        record: makes a replay of it: :func:`as_cuda_graph`, :func:`as_while_graph`, or the identity (it is called).

    Raises:
        NotCapturableError: at the first run.
    """

    def __init__(self, step: Step, record: Callable[[Step], Callable[[], None]] = as_cuda_graph) -> None:
        self._step, self._record = step, record
        self._replay: Callable[[], None] | None = None
        self._memory: tuple[int, ...] = ()
        state = step.state
        self._seen = torch.empty(state.shape, dtype=state.dtype, pin_memory=True) if state.is_cuda else state
        self._block = 1

    def prepare(self) -> None:
        """Capture, if that has not been done for the memory that is in use now; the gate is closed afterwards."""
        step = self._step
        step.flat.ensure_gradients()
        if self._replay is not None and step.memory() == self._memory:
            return
        # With a closed gate nothing that is tried out here leaves a trace, but in buffers that the module replaces.
        step.state.zero_()
        self._replay = None
        kept = {name: buffer.clone() for name, buffer in step.flat.buffers().items()}
        try:
            self._warm_up()
            self._memory = step.memory()
            self._replay = self._record(step)
        except Exception as error:  # a capture fails in as many ways as there are modules
            for name, buffer in step.flat.buffers().items():
                if name in kept and buffer.shape == kept[name].shape:
                    buffer.copy_(kept[name])
            if isinstance(error, NotCapturableError):
                raise
            raise NotCapturableError((str(error).strip() or type(error).__name__).splitlines()[0]) from error

    def _warm_up(self) -> None:
        step, device = self._step, self._step.flat.data.device
        before = RandomStates(device)
        try:
            if device.type == "cuda":
                current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
                side.wait_stream(current)
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        step()
                current.wait_stream(side)
            else:
                step()
            if before.consumed():
                raise NotCapturableError("the model consumes random numbers (dropout?)", expected=True)
        finally:
            before.restore()

    def run(self) -> Seen:
        """Replay until the gate closes or a loss is not finite. ``prepare`` has been called and the gate is open.

        Raises:
            LLPFError: a replay that is to end by itself left the gate open.
        """
        assert self._replay is not None
        least, most = self._step.rule["min_rounds"], self._step.rule["max_rounds"]
        whole = isinstance(self._replay, UntilClosed)
        block = 1 if whole else least
        while True:
            began = time.perf_counter()
            for _ in range(block):
                self._replay()
            seen = self._look(least)
            if seen.closed or not seen.finite:
                return seen
            if whole:
                raise LLPFError(f"the captured iteration stopped after {seen.rounds} rounds with its gate open")
            took = (time.perf_counter() - began) / block
            # Never more than the window remembers: which round was not finite must be known, whatever the clock says.
            block = min(least, most - seen.rounds, max(1, round(_LOOK_EVERY / took)))

    def _look(self, window: int) -> Seen:
        state = self._step.state
        if state.is_cuda:
            self._seen.copy_(state, non_blocking=True)
            torch.cuda.current_stream(state.device).synchronize()
        values = self._seen.tolist()
        rounds = int(values[ROUNDS])
        for round_ in range(max(0, rounds - window), rounds):
            loss = values[WINDOW + round_ % window]
            if not math.isfinite(loss):
                return Seen(round_ + 1, loss, closed=False, finite=False)
        return Seen(rounds, values[MEAN], closed=values[OPEN] == 0 or values[LAST] != 0, finite=True)
