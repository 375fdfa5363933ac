"""``capture``: a call as a CUDA graph, and torch as it was where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

#: Graphs whose capture failed. Torch's allocator goes on asking each of them which allocations are its own.
_failed: list[torch.cuda.CUDAGraph] = []


def capture(call: Callable[[], object], device: torch.device, *, keep_graph: bool = False) -> torch.cuda.CUDAGraph:
    """Capture what ``call`` queues, on a side stream; with ``keep_graph`` the graph can be had raw.

    Raises:
        Exception: what ``call`` raised, or torch because of it. The current stream and the random numbers of the
            device then work as before.
    """
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep_graph else torch.cuda.CUDAGraph()
    cause: Exception | None = None
    try:
        with _capturing(graph, side, device):
            try:
                call()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        _failed.append(graph)
        _mend(device)
        # Torch ends an invalid capture with an error of its own, which says nothing of the reason.
        raise cause or error from None
    current.wait_stream(side)
    return graph


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, side: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    # torch.cuda.graph puts the stream back after a capture that succeeds only. Other threads (a progress bar) may call
    # CUDA meanwhile.
    with (
        torch.cuda.device(device),
        torch.cuda.stream(side),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        yield


def _mend(device: torch.device) -> None:
    """A capture that succeeds: the one that failed left the device's generator believing that it is being captured, and
    the next random number drawn would be refused.
    """
    side = torch.cuda.Stream(device)
    with contextlib.suppress(RuntimeError), torch.cuda.stream(side):
        something = torch.zeros(1, device=device)
        with _capturing(torch.cuda.CUDAGraph(), side, device):
            something.zero_()
