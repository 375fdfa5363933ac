"""Times on a GPU: graph replays between events, on cold or warm memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Calls in the graph whose replay is the warm time: launch gaps of single replays would be all one sees of small ops.
WARM_CALLS = 20
#: Flushes, some 20 ms, before the first time: an idle GPU has a sixth of its clock rate, and whoever is timed first
#: would have that alone.
SETTLE = 300


class Clock:
    """Times of calls in microseconds.

    The flush before a cold call reads four times the level-2 cache and writes nothing: lines left modified would be
    written back while the timed kernel runs, at its cost. What the call before left modified goes out with the flush.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        level2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        self._flusher = torch.ones(level2, dtype=torch.float32, device=device)
        self._sum = torch.empty((), dtype=torch.float32, device=device)
        for _ in range(SETTLE):
            self.flush()

    def flush(self) -> None:
        torch.sum(self._flusher, 0, out=self._sum)

    def events(self, run: Callable[[], object], *, flush: bool, repeats: int) -> list[float]:
        """Times of calls between two events each, the level-2 cache flushed before each or not."""
        pairs = []
        for _ in range(repeats):
            if flush:
                self.flush()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in pairs]

    def replay(self, run: Callable[[], object], calls: int) -> Callable[[], None]:
        """``calls`` of ``run`` as one replay of a graph.

        Raises:
            RuntimeError: it cannot be captured.
        """
        from llpf_fast.correct.graphs import capture

        def together() -> None:
            for _ in range(calls):
                run()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = capture(together, self.device)
        graph.replay()
        return graph.replay
