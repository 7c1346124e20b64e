"""Bursts: the same work over and over for seconds, so that every sensor sees its power, however slowly it refreshes.

The phases of a training step alternate faster than most sensors follow. While only ``forward`` runs, again and again,
the sensor has time to settle; so it has while only ``forward`` and ``backward`` run, and the difference is the
backward's. What is recorded are ordinary phases, all in step 0::

    calibrate                       one for each burst, in the order they were given
      calibrate/forward             each of the burst's parts, again and again; where there is only one, its
      calibrate/backward            repetitions between two pauses are one phase, because they may last microseconds

A short random pause every now and then keeps a burst from beating in time with the sensor's refresh.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perjoule.measure.recorder import Recorder, Timed

CALIBRATE = "calibrate"
PAUSE_S = 0.5
"""Rest between two bursts, in which the power falls back."""
CHUNK_S = 0.2
"""Work between two of the short pauses."""
MAX_BREAK_S = 0.01
"""The longest of the short pauses."""


@dataclass(frozen=True)
class Burst:
    """Work that is repeated as a whole.

    Args:
        parts: (name, what to do), in the order of a step; ``forward`` is recorded as ``calibrate/forward``. A name may
            occur more than once.
    """

    parts: tuple[tuple[str, Callable[[], object]], ...]

    @property
    def name(self) -> str:
        """Return the names of the parts, each once: ``forward+backward``."""
        return "+".join(dict.fromkeys(name for name, _ in self.parts))


@dataclass(frozen=True)
class Repeated:
    """What became of a burst.

    Args:
        name: of the burst.
        num_repeats: how often its parts ran.
        lasted_s: from the first to the last.
    """

    name: str
    num_repeats: int
    lasted_s: float


def phase_names(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the phases that a journal's header must name, for parts of these names."""
    return (CALIBRATE, *(f"{CALIBRATE}/{part}" for part in parts))


def run_bursts(
    bursts: Sequence[Burst],
    recorder: Recorder,
    seconds: float,
    *,
    pause_s: float = PAUSE_S,
    fence: Callable[[], object] = lambda: None,
    agree: Callable[[int], int] = int,
) -> tuple[Repeated, ...]:
    """Run one burst after another and record them.

    Args:
        bursts: what to repeat.
        recorder: its journal's header names :func:`phase_names` of all parts.
        seconds: length of each burst; the last repetition may go beyond it.
        pause_s: rest before each burst.
        fence: waits for the device, so that no burst runs into the pause behind it.
        agree: makes one number of those of all ranks, so that ranks that wait for one another do the same work.
    """
    chance = random.Random(0)  # an own one, alike on all ranks: the state of training is not touched
    return tuple(_run(burst, recorder, seconds, pause_s, fence, agree, chance) for burst in bursts)


def _run(
    burst: Burst,
    recorder: Recorder,
    seconds: float,
    pause_s: float,
    fence: Callable[[], object],
    agree: Callable[[int], int],
    chance: random.Random,
) -> Repeated:
    """Run one burst."""
    whole = recorder.phase(CALIBRATE)
    parts = [(recorder.phase(f"{CALIBRATE}/{name}"), work) for name, work in burst.parts]
    time.sleep(pause_s)
    with whole:
        num_repeats, begun = 0, time.monotonic()
        while count := agree(_next_count(num_repeats, time.monotonic() - begun, seconds)):
            if num_repeats:
                time.sleep(chance.uniform(0, MAX_BREAK_S))
            _repeat(parts, count)
            fence()
            num_repeats += count
        lasted_s = time.monotonic() - begun
    return Repeated(burst.name, num_repeats, lasted_s)


def _repeat(parts: Sequence[tuple[Timed, Callable[[], object]]], count: int) -> None:
    """Run the parts in turn, recorded."""
    if len(parts) == 1:
        ((phase, work),) = parts
        with phase:
            for _ in range(count):
                work()
        return
    for _ in range(count):
        for phase, work in parts:
            with phase:
                work()


def _next_count(num_repeats: int, lasted_s: float, seconds: float) -> int:
    """Return how many repetitions come before the next short pause; 0 when the time is up."""
    if not num_repeats:
        return 1
    left_s = seconds - lasted_s
    if left_s <= 0:
        return 0
    return max(1, round(min(CHUNK_S, left_s) * num_repeats / max(lasted_s, 1e-9)))
