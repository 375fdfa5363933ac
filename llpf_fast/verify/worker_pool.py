"""``WorkerPool``: Python threads of one CPU thread each, for points that are independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool:
    """Applies a function to many items, in order, with ``workers`` Python threads of one CPU thread each.

    Points are independent, so they run in parallel without synchronizing inside an operation (on busy cores two threads
    inside operations were ten times slower than one, LeNet5). torch releases the GIL in its operations. Threads, unlike
    processes, share the data set (MNIST: 188 MB) and need no pickling and no guard in the caller's script. With one
    worker everything runs in the calling thread, with its number of CPU threads.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self._workers > 1:
            self._threads = torch.get_num_threads()
            # Called in a new thread, set_num_threads does not change the caller's OpenMP pool, only what threads
            # started later inherit.
            self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of ``items``, as they become available."""
        results: Iterable[Result] = map(function, items) if self._pool is None else self._pool.map(function, items)
        yield from results
