"""The correction of many paths at once: one forward, one backward and one update for all rows of a stack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..errors import LLPFError
from ..flat import FlatParameters
from ..ops.loss_gate import LAST, MEAN
from .correction import Corrected
from .draw import TensorBatches
from .loss import LossFunction
from .stack import Stack


class StackedCorrection:
    """Runs the corrections of up to ``paths`` paths in step with each other, each with its own gate and its own end.

    A path joins with :meth:`take`, and trains from :meth:`StackedPath.begin` until :meth:`iterate` reports its end;
    :meth:`iterate` trains all that are held. A row's update is that of :class:`~llpf_fast.correct.Correction` bit for
    bit; its forward and backward passes are too while fewer than ``least`` paths are held (they then run in turn), and
    differ from them in the last bits otherwise.

    Args:
        flat: of one module of the architecture; only its layout counts.
        batches: where every path's batches come from.
        paths: rows; memory is held for all of them.
        least: paths below which passes run in turn.
        loss_fn, threshold, ..., keep_momentum: see :class:`~llpf_fast.correct.Correction`.
    """

    def __init__(
        self,
        flat: FlatParameters,
        loss_fn: LossFunction,
        batches: TensorBatches,
        *,
        paths: int,
        least: int = 2,
        threshold: float,
        min_rounds: int,
        max_rounds: int,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        keep_momentum: bool = False,
    ) -> None:
        self._stack = Stack(flat, loss_fn, paths)
        self._batches, self._least = batches, least
        self._rule = {"threshold": threshold, "min_rounds": min_rounds, "max_rounds": max_rounds}
        self._hyper = {"momentum": momentum, "dampening": 0.0, "weight_decay": weight_decay, "nesterov": nesterov}
        device, segments = flat.data.device, len(flat.table)
        self.base_lr = lr
        self.lr = torch.full((paths, segments), lr, dtype=torch.float64, device=device)
        self.momentum_buffer = torch.zeros_like(self._stack.data) if momentum else None
        self.keeps_momentum = keep_momentum and momentum != 0.0
        self.fresh = ops.gate_state(min_rounds, device=device)
        self.state = ops.gate_state(min_rounds, paths, device=device)
        self._paths: list[StackedPath] = []

    @property
    def capacity(self) -> int:
        return self._stack.capacity

    def take(self, flat: FlatParameters) -> StackedPath:
        """Give ``flat`` a row: its values, gradients and buffers lie there from now on."""
        path = StackedPath(self, self._stack.take(flat))
        self._paths.append(path)
        self.lr[path.row] = self.base_lr
        if self.momentum_buffer is not None:
            self.momentum_buffer[path.row].zero_()
        return path

    def drop(self, path: StackedPath) -> None:
        """Free the row of ``path``; the last path moves there."""
        here, last = path.row, self._stack.drop(path.row)
        moved = self._paths.pop()
        if here == last:
            return
        self._paths[here] = moved
        moved.row = here
        for rows in (self.lr, self.state, self.momentum_buffer):
            if rows is not None:
                rows[here].copy_(rows[last])

    def iterate(self) -> list[tuple[StackedPath, Corrected | LLPFError]]:
        """One iteration of every path; those whose correction ended with it, and how.

        Raises:
            LLPFError: the model or the loss fails on the data.
        """
        count, stack = len(self._paths), self._stack
        drawn = [self._batches.draw(path.round) for path in self._paths]
        inputs, targets = [x for x, _ in drawn], [y for _, y in drawn]
        if count < self._least:
            losses = stack.passes_in_turn(inputs, targets)
        else:
            losses = stack.passes_at_once(torch.stack(inputs), torch.stack(targets))
        state = self.state[:count]
        torch.ops.llpf_fast.loss_gate_.default(state, losses, **self._rule)
        torch.ops.llpf_fast.sgd_.default(
            stack.data[:count],
            stack.grad[:count],
            None if self.momentum_buffer is None else self.momentum_buffer[:count],
            self.lr[:count],
            stack.table.segments,
            stack.table.chunks,
            state,
            None,
            None,
            None,
            **self._hyper,
        )
        # One transfer: on a GPU this is where the host waits.
        seen = torch.cat([state[:, [LAST, MEAN]], losses.double()[:, None]], 1).tolist()
        ended = []
        for path, (last, mean, loss) in zip(list(self._paths), seen, strict=True):
            answer = path.follow(bool(last), mean, loss, self._rule["threshold"])
            if answer is not None:
                ended.append((path, answer))
        return ended


class StackedPath:
    """One path's place in a :class:`StackedCorrection`: what a search needs of the correction that is run for it."""

    def __init__(self, stacked: StackedCorrection, row: int) -> None:
        self._stacked, self.row = stacked, row
        self._first = self._rounds = 0
        self._stop_at_nan = False

    @property
    def momentum_buffer(self) -> Tensor | None:
        """``[N]``, a row."""
        rows = self._stacked.momentum_buffer
        return None if rows is None else rows[self.row]

    @property
    def keeps_momentum(self) -> bool:
        return self._stacked.keeps_momentum

    def scale_lr(self, scale: Tensor | None) -> None:
        """As :meth:`Correction.scale_lr <llpf_fast.correct.Correction.scale_lr>`."""
        self._stacked.lr[self.row] = self._stacked.base_lr if scale is None else self._stacked.base_lr * scale

    @property
    def round(self) -> int:
        """Of the stream, for the coming iteration."""
        return self._first + self._rounds

    def begin(self, first_round: int, *, go_on: bool = False, stop_at_nan: bool = False) -> None:
        """Train from round ``first_round`` on; see :meth:`Correction.run <llpf_fast.correct.Correction.run>`."""
        self._first, self._rounds, self._stop_at_nan = first_round, 0, stop_at_nan
        self._stacked.state[self.row].copy_(self._stacked.fresh)
        momentum = self.momentum_buffer
        if momentum is not None and not (self._stacked.keeps_momentum or go_on):
            momentum.zero_()

    def follow(self, last: bool, mean: float, loss: float, threshold: float) -> Corrected | LLPFError | None:
        """What the iteration just done means for this path; None where it trains on."""
        self._rounds += 1
        if not math.isfinite(loss):
            if self._stop_at_nan:
                return Corrected(self._rounds, loss, False, finite=False)
            return LLPFError(
                f"the training loss became {loss} in round {self._rounds} of the correction; "
                "try a smaller correction.lr or a smaller step"
            )
        return Corrected(self._rounds, mean, mean <= threshold) if last else None
