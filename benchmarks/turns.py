"""Lets training loops that cannot be called step by step take turns.

A trainer that owns its loop asks for batches, and that is where it can be held: every arm runs in a thread of its own,
and the samples it reads from wait at the end of each block of steps until the arm's next turn comes. One thread runs
at a time. A block is timed from the moment its first batch is handed over to the moment the next block's is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from perjoule.data.contract import Batch, Samples


@dataclass(frozen=True)
class Lap:
    """Seconds per step of one block, by the wall and by the CPU time of the process."""

    wall_s: float
    cpu_s: float


class Over(Exception):
    """Ends an arm's loop from within: its last turn is over."""


class Arm:
    """One training loop that takes turns.

    Args:
        loop: trains on the samples it is given until it is stopped.
        samples: where its batches come from.
        block: steps per turn.
    """

    def __init__(self, loop: Callable[[Samples], None], samples: Samples, block: int) -> None:
        self._samples, self._block = samples, block
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._left = self._wall = self._cpu = 0.0
        self._lap = Lap(0.0, 0.0)
        self._error: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    @property
    def num_samples(self) -> int:
        """Return the samples of one epoch."""
        return self._samples.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the samples asked for, at the arm's turn.

        Raises:
            Over: after the last turn.
        """
        if self._left == 0:
            wall, cpu = time.perf_counter(), time.process_time()
            self._lap = Lap((wall - self._wall) / self._block, (cpu - self._cpu) / self._block)
            self._done.release()
            self._go.acquire()
            if self._over:
                raise Over
            self._left = self._block
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._left -= 1
        return self._samples.batch(start, rows)

    def ready(self) -> None:
        """Wait until the loop has been set up and asks for its first batch."""
        self._wait()

    def turn(self) -> Lap:
        """Let the arm take one block of steps and return what a step took."""
        self._go.release()
        self._wait()
        return self._lap

    def end(self) -> None:
        """Stop the loop."""
        self._over = True
        self._go.release()
        self._thread.join()

    def _run(self, loop: Callable[[Samples], None]) -> None:
        try:
            loop(self)
            raise RuntimeError("the loop ended before its last turn")
        except Over:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    def _wait(self) -> None:
        """Wait for the end of the arm's turn; raise here what ended its loop there."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
