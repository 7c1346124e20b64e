"""Batches built ahead by threads, in the order they were asked for.

The loop knows the positions it will read before it reads them, and a batch is a pure function of its positions. So a
prefetcher needs no queue protocol, no sharding and no state of its own: it walks the loop's ranges a little ahead and
hands the results over in the same order. The stream is the same for any number of workers, and what was built ahead
but not consumed is simply built again after a resume.

A thread is no gain for a batch that is built sooner than it is handed over: 8 rows of 1,024 tokens take 20 µs, waking a
thread for them and being woken by it 50 µs, or 100 beside a training step. So the loop builds batches itself unless
they have lately taken longer than threads would have cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from types import TracebackType

from perjoule.data.contract import Batch, Samples

HANDOVER_S = 200e-6
"""A batch that takes no longer is not worth a thread."""
PATIENCE_S = 0.05
"""Threads build while more than this has been lost: what batches took beyond the above, less what quicker ones made up
for. A single stall of a disk is shorter."""
MOST_LOST_S = 0.1
"""However long batches took, a few hundred quick ones make up for it."""

Range = tuple[int, int]
"""The global position of the first row, and the number of rows."""


def ranges(start: int, rows: int, rank: int = 0, world_size: int = 1) -> Iterator[Range]:
    """Yield, without end, the ranges that one rank reads.

    All ranks together read ``start, start + 1, …`` once and in order, ``world_size · rows`` positions per step; which
    samples a step trains on does not depend on how many ranks share it.

    Args:
        start: the first global position, for all ranks alike: 0, or where a checkpoint was taken.
        rows: rows of this rank's batch.
        rank: from 0 to ``world_size - 1``.
        world_size: number of ranks.
    """
    while True:
        yield start + rank * rows, rows
        start += world_size * rows


class Prefetcher:
    """Iterate over the batches of a split at the given ranges.

    Use as ``with Prefetcher(samples, ranges(position, rows), workers=1) as batches: batch = next(batches)``.

    Args:
        samples: the split.
        ranges: what to read; taken only as far ahead as needed, so it may be endless.
        workers: threads that build batches which take long; 0 builds each batch when it is asked for.
        ahead: batches held or in the making at most; two for each worker unless told.
    """

    def __init__(self, samples: Samples, ranges: Iterable[Range], workers: int = 1, ahead: int | None = None) -> None:
        self._samples = samples
        self._ranges = iter(ranges)
        self._ahead = max(1, 2 * workers if ahead is None else ahead)
        self._pending: deque[Future[tuple[Batch, float]]] = deque()
        self._pool = ThreadPoolExecutor(workers, "perjoule-data") if workers > 0 else None
        self._lost_s = 0.0

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; an exception of the thread that built it is raised here."""
        if self._pool is None:
            return self._samples.batch(*next(self._ranges))
        if self._lost_s > PATIENCE_S:
            while len(self._pending) < self._ahead and (wanted := next(self._ranges, None)) is not None:
                self._pending.append(self._pool.submit(self._timed, *wanted))
        batch, took_s = self._pending.popleft().result() if self._pending else self._timed(*next(self._ranges))
        lost_s = self._lost_s + took_s - HANDOVER_S
        self._lost_s = min(lost_s, MOST_LOST_S) if lost_s > 0 else 0.0
        return batch

    def _timed(self, start: int, rows: int) -> tuple[Batch, float]:
        """Return a batch and the seconds it took."""
        started = perf_counter()
        return self._samples.batch(start, rows), perf_counter() - started

    def close(self) -> None:
        """End the stream and the threads; batches that were built ahead are dropped."""
        self._ranges = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
