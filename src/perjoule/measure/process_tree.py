"""CPU time and memory of processes and of everything that they start, also of what has ended by now. Linux only.

Every process has two figures: its own CPU time, by the scheduler's clock to the nanosecond, and that of the children
that it has *waited for*, which the kernel adds to it when they end, to a clock tick of 10 ms. Their sum over a tree is
conserved when a process ends: what it used moves into its parent's second figure. So nothing is lost of processes that
live between two readings, such as the steps of a shell script. Lost is the time of

- children of a process that has told the kernel not to keep them (``SIGCHLD`` ignored), unless a reading saw them;
- processes whose parent ended first, which go to another one (``init``), from the last reading on. They are followed
  as long as they live. Where the parent of all is a *subreaper*, they go to that one, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perjoule.measure.meters.sysfs import text

_SCAN_SHARE = 0.005
"""Looking for new processes may take so much of the time: reading the lists of many threads takes milliseconds."""
_SCAN_S = (0.1, 1.0)
"""Shortest and longest time between two such looks."""
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
_ROUNDING_NS = 2 * _TICK_NS
"""User and system time are each rounded down to a tick."""


@dataclass(frozen=True)
class _Process:
    """A process as it was last seen.

    Args:
        parent: its parent's number.
        started: ticks since the machine was started; with the number, this names a process for good.
        own_ns: its CPU time.
        waited_ns: CPU time of the children that it waited for, and of theirs.
    """

    parent: int
    started: int
    own_ns: int
    waited_ns: int


class CpuClocks:
    """CPU time of processes and of all that they start, since the object was made.

    Args:
        pids: the processes.
        parent: a process whose children count and which does not count itself; 0 if there is none.
        without: processes that do not count, this one among them in any case.

    Raises:
        ProcessLookupError: if none of them runs.
        OSError: if the system has no CPU clocks of other processes.
    """

    def __init__(self, pids: Iterable[int], parent: int = 0, without: Collection[int] = ()) -> None:
        self._parent, roots = parent, (*pids, *([parent] if parent else ()))
        self._without = {*without, os.getpid()} - {*roots}
        for pid in roots:
            cpu_time_ns(pid)
        self._known: dict[int, _Process] = {}
        self._ended_ns = self._spent_ns = 0
        self._next_scan_s = 0.0
        self._scan(roots)
        self._first_ns = self._now_ns()

    def spent_ns(self) -> int:
        """Return the CPU time since the object was made, nanoseconds; never less than before."""
        changed = False
        for pid, process in self._known.items():
            if pid != self._parent and (own_ns := _own_ns(pid)) is not None and own_ns >= process.own_ns:
                self._known[pid] = replace(process, own_ns=own_ns)
            else:
                changed |= pid != self._parent
        if changed or time.monotonic() >= self._next_scan_s:
            self._scan(tuple(self._known))
        self._spent_ns = max(self._spent_ns, self._now_ns() - self._first_ns)
        return self._spent_ns

    def leave_out(self, pid: int) -> None:
        """Do not count a process that was started after this object was made."""
        self._without.add(pid)
        self._known.pop(pid, None)

    def pids(self) -> tuple[int, ...]:
        """Return the processes that count, as of the last look."""
        return tuple(pid for pid in self._known if pid != self._parent)

    def _now_ns(self) -> int:
        return self._ended_ns + sum(one.own_ns + one.waited_ns for one in self._known.values())

    def _scan(self, known: tuple[int, ...]) -> None:
        """Look for new processes, and settle where the time of those that ended went."""
        begun_s = time.monotonic()
        there = {*known} | descendants(known)
        now: dict[int, _Process] = {}
        # Children first: one that ends meanwhile is then seen twice for a moment, and not lost for good.
        for pid in sorted(there - self._without, reverse=True):
            seen, before = self._look(pid), self._known.get(pid)
            if seen is not None and (before is None or seen.started == before.started):
                now[pid] = seen
        self._settle(now)
        self._known = now
        took_s = time.monotonic() - begun_s
        self._next_scan_s = begun_s + min(max(took_s / _SCAN_SHARE, _SCAN_S[0]), _SCAN_S[1])

    def _look(self, pid: int) -> _Process | None:
        """Return what a process has used by now, None if there is no such process."""
        own_ns = 0 if pid == self._parent else _own_ns(pid)
        if own_ns is None:
            return None
        words = text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        if len(words) < 20:
            return None
        return _Process(int(words[1]), int(words[19]), own_ns, (int(words[13]) + int(words[14])) * _TICK_NS)

    def _settle(self, now: Mapping[int, _Process]) -> None:
        """Keep the time of processes that ended, unless it stands in the books of one that is still there."""
        owed_ns: dict[int, int] = {}
        for pid, process in self._known.items():
            if pid in now:
                continue
            heir, passed = process.parent, {pid}
            while heir in self._known and heir not in now and heir not in passed:
                passed.add(heir)
                heir = self._known[heir].parent
            used_ns = process.own_ns + process.waited_ns
            if heir in now and heir in self._known:
                owed_ns[heir] = owed_ns.get(heir, 0) + used_ns
            else:
                self._ended_ns += used_ns
        for heir, used_ns in owed_ns.items():
            missing_ns = used_ns - (now[heir].waited_ns - self._known[heir].waited_ns)
            if missing_ns > _ROUNDING_NS:
                self._ended_ns += missing_ns


def _own_ns(pid: int) -> int | None:
    try:
        return cpu_time_ns(pid)
    except OSError:
        return None


def cpu_time_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process since it started, to the nanosecond.

    Raises:
        OSError: if there is no such process, or no such clock on this system.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)  # Linux's number of the scheduler's clock of a whole process


def descendants(pids: Iterable[int]) -> set[int]:
    """Return the processes that the given ones started, and those that these started, except this process."""
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        for path in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            children = {int(pid) for pid in text(path).split()} - found - {os.getpid()}
            found |= children
            waiting += children
    return found


class ResidentMemory:
    """Memory of processes and of all that they start: the pages that are in RAM, those that they share counted once.

    Args:
        pids: the processes.
        parent: a process whose children count and which does not count itself; 0 if there is none.
    """

    def __init__(self, pids: Iterable[int], parent: int = 0) -> None:
        self._roots, self._parent = tuple(pids), parent
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._found: tuple[int, ...] = ()
        self._next_scan_s = 0.0

    def read_bytes(self) -> int | None:
        """Return the bytes in RAM now; None if no process runs. Of shared pages the largest share of a process."""
        begun_s = time.monotonic()
        if begun_s >= self._next_scan_s:
            started = descendants((*self._roots, *([self._parent] if self._parent else ())))
            self._found = tuple({*self._roots, *started} - {self._parent})
            took_s = time.monotonic() - begun_s
            self._next_scan_s = begun_s + min(max(took_s / _SCAN_SHARE, _SCAN_S[0]), _SCAN_S[1])
        private, shared = 0, 0
        running = False
        for pid in self._found:
            with contextlib.suppress(IndexError, ValueError):
                words = text(Path(f"/proc/{pid}/statm")).split()
                resident, common = int(words[1]), int(words[2])
                running = True
                private, shared = private + resident - common, max(shared, common)
        return (private + shared) * self._page_bytes if running or self._parent else None
