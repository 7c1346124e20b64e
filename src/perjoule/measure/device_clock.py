"""When the device passed the edges of the phases, in host time, without ever waiting for it.

A device works behind the host's back: ``forward`` returns when its kernels are queued. So at every edge an event is put
into the device's queue, and some edges later, when the device has passed it, it is read. Events tell times between
one another only. Where they lie in host time is bounded on both sides::

    host time when the event was queued  <=  host time of the event  <=  host time when it was first seen complete

Each event so bounds the offset between the clocks. The smallest upper bound is taken for the offset: at every edge the
oldest event is looked at, so that some are seen microseconds after they happened, while lower bounds are far off as
long as the host runs ahead. It rises by ``MAX_DRIFT`` until the next event pushes it down, because the clocks drift.
Records only follow it from one top-level phase to the next: within a step, durations are the device's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from perjoule.runs.journal import END, HasStep, JournalWriter

MAX_DRIFT = 1e-4
"""How much the device's clock may run fast or slow; crystals keep 5e-5."""
ANCHOR_MS = 1000.0
"""Age at which an anchor is replaced: devices tell the time between two events as a 32-bit float of milliseconds."""


class Event(Protocol):
    """A mark in the queue of a device, as ``torch.cuda.Event(enable_timing=True)`` is one."""

    def record(self) -> None:
        """Put the mark behind everything that is queued now."""

    def query(self) -> bool:
        """Return whether the device has passed the mark."""

    def elapsed_time(self, end: Any, /) -> float:
        """Return the milliseconds from this mark to a later one."""


class _Mark(NamedTuple):
    """An event on its way, with the edge it stands for. A tuple, because one is made at every edge."""

    event: Event
    code: int
    step: int
    queued_ns: int
    depth: int


class DeviceClock:
    """Writes the device's own journal of the phases.

    Args:
        new_event: makes an event that keeps the time.
        fence: waits until the device is idle; called once, to begin with a tight bound.
        journal: where records go, with the same phases as the host's journal; ``cpu_ns`` is 0 in all of them.
    """

    def __init__(self, new_event: Callable[[], Event], fence: Callable[[], None], journal: JournalWriter) -> None:
        self._new_event, self._journal = new_event, journal
        self._pool: list[Event] = []
        self._marks: deque[_Mark] = deque()
        self._depth = 0
        self._last_ns = 0
        self._anchor, self._anchor_ns = new_event(), 0
        """An event, and its time by the device's clock, which begins with the first one."""
        fence()
        self._anchor.record()
        fence()
        self._bound_ns = self._offset_ns = float(time.monotonic_ns())
        """Host time minus device time: the smallest upper bound of late, and the one in use."""
        self._seen_ns = 0
        """Device time of the last event that was seen."""

    def edge(self, code: int, now: HasStep) -> Callable[..., None]:
        """Return a function that marks one edge of a phase; ``code`` is the journal's.

        It takes any arguments, so that it can be part of an ``__enter__`` or an ``__exit__``.
        """
        ends = bool(code & END)

        def mark(*_: object) -> None:
            self._depth -= ends
            event = self._pool.pop() if self._pool else self._new_event()
            queued_ns = time.monotonic_ns()
            event.record()
            self._marks.append(_Mark(event, code, now.step, queued_ns, self._depth))
            self._depth += not ends
            self.harvest()

        return mark

    def harvest(self) -> None:
        """Write the records of the events that the device has passed."""
        while self._marks and self._marks[0].event.query():
            self._write(self._marks.popleft(), time.monotonic_ns())

    def close(self) -> None:
        """Write what is complete, and close the journal; call it when the device is idle."""
        self.harvest()
        self._marks.clear()
        self._journal.close()

    def _write(self, mark: _Mark, seen_ns: int) -> None:
        """Place one event in host time."""
        elapsed_ms = self._anchor.elapsed_time(mark.event)
        device_ns = self._anchor_ns + round(elapsed_ms * 1e6)
        rise_ns = max(0, device_ns - self._seen_ns) * MAX_DRIFT
        self._seen_ns = device_ns
        self._bound_ns = min(max(self._bound_ns + rise_ns, mark.queued_ns - device_ns), seen_ns - device_ns)
        if mark.depth == 0 and not mark.code & END:
            self._offset_ns = self._bound_ns
        # A new offset may not turn time back.
        self._last_ns = max(self._last_ns, round(device_ns + self._offset_ns))
        self._journal.put(self._last_ns, 0, mark.step, mark.code)
        if elapsed_ms >= ANCHOR_MS:
            self._pool.append(self._anchor)
            self._anchor, self._anchor_ns = mark.event, device_ns
        else:
            self._pool.append(mark.event)
