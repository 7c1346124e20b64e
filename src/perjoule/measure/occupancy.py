"""Where a process was at any moment: how long each phase had lasted by then, and how much processor time it had taken.

Phases nest by name and do not overlap, so the record before a moment says which phase holds it: the one that began, or
the parent of the one that ended. All times here are *exclusive*: a nested phase's time is not its parent's. Journals
are walked in chunks, so that memory does not grow with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import OTHER, STEP, parent
from perjoule.runs.journal import BEGIN, CHUNK_RECORDS, Journal

Ints = NDArray[np.int64]
OUTSIDE = "outside"


@dataclass(frozen=True)
class Spent:
    """Time and processor time of every state at given moments.

    Args:
        states: ``outside``, ``other`` (a step without its phases), then the phases.
        wall_ns: (num_states, num_times) nanoseconds since the first record; before it everything is outside.
        cpu_ns: (num_states, num_times) processor nanoseconds of the process, all threads.
    """

    states: tuple[str, ...]
    wall_ns: Ints
    cpu_ns: Ints


class Whereabouts:
    """The states of one process.

    Args:
        journal: what it recorded.
    """

    def __init__(self, journal: Journal) -> None:
        names = journal.phases
        self.states = (OUTSIDE, *(OTHER if name == STEP else name for name in names))
        self.begin_ns, self.end_ns = 0, 0
        if len(journal.records):
            self.begin_ns, self.end_ns = int(journal.records["t_ns"][0]), int(journal.records["t_ns"][-1])
        self._records = journal.records
        self._step = names.index(STEP) + 1 if STEP in names else 0
        numbers = {name: number for number, name in enumerate(names, 1)}
        self._parent = np.array([0, *(numbers.get(parent(name), 0) for name in names)], np.int64)
        """State that holds a process when a phase ended. Outside a step it is ``outside`` instead of ``other``."""

    def spent(self, times_ns: Ints) -> Spent:
        """Return what every state had taken at ascending moments."""
        shape = (len(self.states), len(times_ns))
        wall, cpu = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for t_ns, cpu_ns, state in self._chunks(times_ns):
            lasted, used = np.diff(t_ns), np.diff(cpu_ns)
            first, last = np.searchsorted(times_ns, (t_ns[0], t_ns[-1]))
            asked = times_ns[first:last]
            row = np.searchsorted(t_ns, asked, side="right") - 1
            # A span between two records counts for every moment behind its end: it is put with the first of these.
            place = np.repeat(np.arange(len(asked) + 1), np.diff(np.concatenate([[0], row, [len(lasted)]])))
            for total, spans in ((wall, lasted), (cpu, used)):
                sums = np.bincount(place * shape[0] + state[:-1], spans, (len(asked) + 1) * shape[0])
                until = np.cumsum(sums.reshape(-1, shape[0]), axis=0).astype(np.int64)
                total[:, first:last] += until[:-1].T
                total[:, last:] += until[-1][:, None]
            part = asked - t_ns[row]
            moments = np.arange(first, last)
            np.add.at(wall, (state[row], moments), part)
            np.add.at(cpu, (state[row], moments), (used[row] * (part / np.maximum(lasted[row], 1))).astype(np.int64))
        after = np.maximum(times_ns - self.end_ns, 0) + np.minimum(times_ns - self.begin_ns, 0)
        wall[0] += after
        return Spent(self.states, wall, cpu)

    def count(self) -> dict[str, int]:
        """Return how often each phase began; ``other`` stands for the steps."""
        begun = np.zeros(len(self.states), np.int64)
        for start in range(0, len(self._records), CHUNK_RECORDS):
            chunk = self._records[start : start + CHUNK_RECORDS]
            begun[1:] += np.bincount(chunk["phase"][chunk["kind"] == BEGIN], minlength=len(begun) - 1)
        return dict(zip(self.states, begun.tolist(), strict=True))

    def occurrences(self, phase: str) -> Ints:
        """Return the (num, 2) begin and end moments of a phase that occurs a few times."""
        if phase not in self.states:
            return np.empty((0, 2), np.int64)
        mine = self._records[self._records["phase"] == self.states.index(phase) - 1]
        ends = np.flatnonzero(mine["kind"] != BEGIN)
        ends = ends[ends > 0]
        return np.stack([mine["t_ns"][ends - 1], mine["t_ns"][ends]], axis=1)

    def steps(self) -> tuple[Ints, Ints, Ints]:
        """Return the numbers, begins and ends of all steps that ended."""
        parts = [np.empty((3, 0), np.int64)]
        begun: np.ndarray[Any, Any] = self._records[:0]
        for start in range(0, len(self._records), CHUNK_RECORDS):
            chunk = self._records[start : start + CHUNK_RECORDS]
            mine = np.concatenate([begun, chunk[(chunk["phase"] == self._step - 1) & (chunk["step"] > 0)]])
            begun = mine[-1:] if len(mine) and mine["kind"][-1] == BEGIN else mine[:0]
            ends = np.flatnonzero(mine["kind"] != BEGIN)
            ends = ends[ends > 0]
            parts.append(np.stack([mine["step"][ends].astype(np.int64), mine["t_ns"][ends - 1], mine["t_ns"][ends]]))
        numbers, begins, ends_ns = np.concatenate(parts, axis=1)
        return numbers, begins, ends_ns

    def _chunks(self, times_ns: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Yield (moments, processor time, state from there on), each chunk from the last row of the one before on.

        Records after the last moment asked for are left out.
        """
        records: np.ndarray[Any, Any] = self._records
        if len(times_ns) and len(records):
            records = records[: np.searchsorted(records["t_ns"], times_ns[-1], side="right") + 1]
        depth = 0
        carried: tuple[Ints, Ints, Ints] | None = None
        for start in range(0, len(records), CHUNK_RECORDS):
            chunk = records[start : start + CHUNK_RECORDS]
            number = chunk["phase"].astype(np.int64) + 1
            begins = chunk["kind"] == BEGIN
            is_step = number == self._step
            inside = depth + np.cumsum(np.where(is_step, np.where(begins, 1, -1), 0))
            depth = int(inside[-1])
            state = np.where(begins, number, self._parent[number])
            state[(state == self._step) & (inside <= 0)] = 0
            moments, used = chunk["t_ns"].astype(np.int64), chunk["cpu_ns"].astype(np.int64)
            if carried is not None:
                moments, used, state = (
                    np.concatenate([old, new]) for old, new in zip(carried, (moments, used, state), strict=True)
                )
            carried = moments[-1:], used[-1:], state[-1:]
            if len(moments) > 1:
                yield moments, used, state


def together(ranks: Sequence[Spent]) -> Spent:
    """Return the states of several processes: wall time is their mean, processor time their sum."""
    states = tuple(dict.fromkeys(state for one in ranks for state in one.states))
    shape = (len(states), ranks[0].wall_ns.shape[1])
    wall, cpu = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for one in ranks:
        rows = [states.index(state) for state in one.states]
        wall[rows] += one.wall_ns
        cpu[rows] += one.cpu_ns
    return Spent(states, wall // len(ranks), cpu)
