"""The recorder: it stands at every edge of every phase and writes one journal record.

What happens at an edge, in this order: wait for the device if the policy says so, read the clocks, write 32 bytes.
There is no allocation, lock, JSON, sensor or device read on this path.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Protocol

from perjoule.core import phases
from perjoule.measure.device_clock import DeviceClock
from perjoule.runs.journal import BEGIN, END, JournalWriter


class FencePolicy(StrEnum):
    """When the device is waited for. Fencing changes what it measures, so the policy is recorded."""

    NONE = "none"
    STEP = "step"
    EDGE = "edge"


class Recorder:
    """Makes the phases of one process and keeps the current step number for them.

    Args:
        journal: where records go; None records nothing (the phases then do nothing at all).
        fence: waits until the device is idle; injected, because this room never imports torch.
        policy: when to wait.
        device_clock: writes the same phases as the device passed them; None on a CPU, where host time is the device's.
    """

    def __init__(
        self,
        journal: JournalWriter | None,
        fence: Callable[[], None],
        policy: FencePolicy,
        device_clock: DeviceClock | None = None,
    ) -> None:
        self.step = 0
        self._journal = journal
        self.device_clock = device_clock
        self._fence = fence
        self._policy = policy

    def phase(self, name: str) -> Timed:
        """Return the reusable context manager of a phase that the journal's header names.

        Its two methods are the journal's own writers, so that an edge is one Python call.
        """
        if self._journal is None:
            return NoPhase()
        fences = self._policy == FencePolicy.EDGE or (self._policy == FencePolicy.STEP and name == phases.STEP)
        methods: dict[str, Callable[..., None]] = {}
        for method, kind in (("__enter__", BEGIN), ("__exit__", END)):
            code = self._journal.code(name, kind)
            write = self._journal.edge(code, self)
            if self.device_clock is not None:
                mark = self.device_clock.edge(code, self)
                write = _both(write, mark) if kind == BEGIN else _both(mark, write)  # marking counts to the phase
            methods[method] = _after(self._fence, write) if fences else write
        recorded: Timed = type("Phase", (), {"__slots__": (), **methods})()
        return recorded

    def close(self) -> None:
        """Close the journals."""
        if self.device_clock is not None:
            self.device_clock.close()
        if self._journal is not None:
            self._journal.close()


class NoPhase:
    """A phase that is not recorded."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Timed(Protocol):
    """What a loop needs of a phase: entering and leaving."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""


def _after(fence: Callable[[], None], write: Callable[..., None]) -> Callable[..., None]:
    """Return a writer that waits first."""

    def fenced(*_: object) -> None:
        fence()
        write()

    return fenced


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[..., None]:
    """Return a function that does one after the other."""

    def both(*_: object) -> None:
        first()
        second()

    return both
