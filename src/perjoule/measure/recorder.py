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
from perjoule.runs.journal import BEGIN, END, JournalWriter


class FencePolicy(StrEnum):
    """When the device is waited for. Fencing changes what it measures, so the policy is recorded."""

    NONE = "none"
    STEP = "step"
    EDGE = "edge"


class Phase:
    """A reusable context manager for one phase. Entering and leaving it costs about a microsecond each."""

    __slots__ = ("_begin", "_end", "_fence", "_mark", "_recorder")

    def __init__(self, recorder: Recorder, mark: Callable[[int, int], None], begin: int, end: int) -> None:
        self._recorder, self._mark, self._begin, self._end = recorder, mark, begin, end
        self._fence: Callable[[], None] | None = None

    def fenced_by(self, fence: Callable[[], None] | None) -> Phase:
        """Wait with ``fence`` at both edges; None waits at neither."""
        self._fence = fence
        return self

    def __enter__(self) -> None:
        if self._fence is not None:
            self._fence()
        self._mark(self._recorder.step, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fence is not None:
            self._fence()
        self._mark(self._recorder.step, self._end)


class Recorder:
    """Makes the phases of one process and keeps the current step number for them.

    Args:
        journal: where records go; None records nothing (the phases then do nothing at all).
        fence: waits until the device is idle; injected, because this room never imports torch.
        policy: when to wait.
    """

    def __init__(self, journal: JournalWriter | None, fence: Callable[[], None], policy: FencePolicy) -> None:
        self.step = 0
        self._journal = journal
        self._fence = fence
        self._policy = policy

    def phase(self, name: str) -> Phase | NoPhase:
        """Return the context manager of a phase that the journal's header names."""
        if self._journal is None:
            return NoPhase()
        begin, end = self._journal.code(name, BEGIN), self._journal.code(name, END)
        fences = self._policy == FencePolicy.EDGE or (self._policy == FencePolicy.STEP and name == phases.STEP)
        return Phase(self, self._journal.mark, begin, end).fenced_by(self._fence if fences else None)

    def close(self) -> None:
        """Close the journal."""
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
