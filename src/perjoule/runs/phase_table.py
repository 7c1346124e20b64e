"""From the records of a journal to the nanoseconds of every phase in every step.

A phase does not nest in itself, so its begin and end records alternate and pairing them needs no stack: an end belongs
to the begin before it. That makes the join a handful of array operations per phase, in memory that does not depend on
how often a phase occurs in a step (gradient accumulation). Times stay integers until they are shown: what is left of a
step after its phases is then exact, and never negative by a rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import STEP, parent
from perjoule.runs.journal import BEGIN, CHUNK_RECORDS, END, Journal

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_NS_PER_S = 1e9


@dataclass(frozen=True)
class PhaseTable:
    """How long every phase took in every completed step, as one rank of one segment recorded it.

    Args:
        steps: (num_steps,) numbers of the steps whose end was recorded, ascending.
        wall_ns: phase to (num_steps,) wall-clock nanoseconds, nested phases included; several occurrences in a step
            are added. ``step`` is the whole iteration.
        cpu_ns: the same for the CPU time of the process, all threads.
        before_ns: phase to nanoseconds recorded before training (step 0).
        after_ns: phase to nanoseconds recorded after the end of their step: the evaluation and the checkpoint that
            close a run. They are no part of ``wall_ns``, as they are no part of the step.
        num_unclosed: begin records without an end: what was under way when the process died. Their time is unknown.
        num_partial_steps: steps with closed phases whose own end is missing. Their time is not in the table.
    """

    steps: Ints
    wall_ns: Mapping[str, Ints]
    cpu_ns: Mapping[str, Ints]
    before_ns: Mapping[str, int]
    after_ns: Mapping[str, int]
    num_unclosed: int
    num_partial_steps: int

    @property
    def phases(self) -> list[str]:
        """Return the phases that occurred, without ``step``, in the order of the journal."""
        return [phase for phase in self.wall_ns if phase != STEP]

    def wall_s(self, phase: str) -> Floats:
        """Return the (num_steps,) wall-clock seconds of ``phase``, nested phases included; 0 where it did not occur."""
        return self._column(self.wall_ns, phase) / _NS_PER_S

    def exclusive_s(self, phase: str) -> Floats:
        """Return the seconds of ``phase`` without those nested in it; of ``step`` that is ``other``."""
        return self._exclusive(self.wall_ns, phase) / _NS_PER_S

    def exclusive_cpu_s(self, phase: str) -> Floats:
        """Return the CPU seconds of ``phase`` without those nested in it."""
        return self._exclusive(self.cpu_ns, phase) / _NS_PER_S

    def total_ns(self, phase: str) -> int:
        """Return the nanoseconds of ``phase`` in all steps, without nested ones; of ``step`` that is ``other``."""
        return int(self._exclusive(self.wall_ns, phase).sum())

    def total_cpu_ns(self, phase: str) -> int:
        """Return the CPU nanoseconds of ``phase`` in all steps, without nested ones."""
        return int(self._exclusive(self.cpu_ns, phase).sum())

    def only(self, steps: Ints) -> PhaseTable:
        """Return the rows of the given step numbers, as far as the table has them."""
        rows = np.isin(self.steps, steps)
        return replace(
            self,
            steps=self.steps[rows],
            wall_ns={phase: column[rows] for phase, column in self.wall_ns.items()},
            cpu_ns={phase: column[rows] for phase, column in self.cpu_ns.items()},
        )

    def _exclusive(self, columns: Mapping[str, Ints], phase: str) -> Ints:
        children = [columns[other] for other in self.phases if parent(other) == phase]
        return self._column(columns, phase) - sum(children, np.zeros(len(self.steps), np.int64))

    def _column(self, columns: Mapping[str, Ints], phase: str) -> Ints:
        column = columns.get(phase)
        return np.zeros(len(self.steps), np.int64) if column is None else column


def build_phase_table(journal: Journal) -> PhaseTable:
    """Pair the begin and end records of a journal and add them up by step and phase."""
    records = journal.records
    in_training = records["step"][records["step"] > 0]
    if not len(in_training):
        return PhaseTable(np.empty(0, np.int64), {}, {}, _before(journal), {}, _num_unclosed(journal), 0)
    first, last = int(in_training.min()), int(in_training.max())
    shape = (len(journal.phases), last - first + 1)
    wall, cpu, num_closed = (np.zeros(shape, np.int64) for _ in range(3))
    opened_ns, closed_ns = _step_bounds(journal, first, shape[1])
    after: dict[str, int] = {}
    for phase, all_begins, all_ends in _pairs(journal, range(len(journal.phases))):
        in_training = all_ends["step"] > 0
        begins, ends = all_begins[in_training], all_ends[in_training]
        rows = ends["step"].astype(np.int64) - first
        inside = (begins["t_ns"] >= opened_ns[rows]) & (ends["t_ns"] <= closed_ns[rows])
        if not inside.all():
            name, outside_ns = journal.phases[phase], (ends["t_ns"] - begins["t_ns"])[~inside]
            after[name] = after.get(name, 0) + int(outside_ns.sum())
            begins, ends, rows = begins[inside], ends[inside], rows[inside]
        np.add.at(wall[phase], rows, ends["t_ns"] - begins["t_ns"])
        np.add.at(cpu[phase], rows, ends["cpu_ns"] - begins["cpu_ns"])
        np.add.at(num_closed[phase], rows, 1)
    closed = num_closed[journal.phases.index(STEP)] > 0 if STEP in journal.phases else np.zeros(shape[1], bool)
    names = [(number, name) for number, name in enumerate(journal.phases) if num_closed[number].any()]
    return PhaseTable(
        steps=np.flatnonzero(closed).astype(np.int64) + first,
        wall_ns={name: wall[number][closed] for number, name in names},
        cpu_ns={name: cpu[number][closed] for number, name in names},
        before_ns=_before(journal),
        after_ns=after,
        num_unclosed=_num_unclosed(journal),
        num_partial_steps=int((num_closed.any(axis=0) & ~closed).sum()),
    )


def _step_bounds(journal: Journal, first: int, num_steps: int) -> tuple[Ints, Ints]:
    """Return when each step began and ended; one that has no end holds everything that bears its number."""
    opened_ns, closed_ns = np.zeros(num_steps, np.int64), np.full(num_steps, np.iinfo(np.int64).max)
    if STEP in journal.phases:
        for _, begins, ends in _pairs(journal, [journal.phases.index(STEP)]):
            rows = ends["step"].astype(np.int64) - first
            opened_ns[rows], closed_ns[rows] = begins["t_ns"], ends["t_ns"]
    return opened_ns, closed_ns


def _pairs(journal: Journal, phases: Sequence[int]) -> Iterator[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield (phase number, begin records, end records) with matching rows, a chunk of the journal at a time."""
    open_begins: dict[int, np.ndarray[Any, Any]] = {}
    for start in range(0, len(journal.records), CHUNK_RECORDS):
        chunk = journal.records[start : start + CHUNK_RECORDS]
        for phase in phases:
            mine = chunk[chunk["phase"] == phase]
            if phase in open_begins:
                mine = np.concatenate([open_begins.pop(phase), mine])
            if not len(mine):
                continue
            if mine["kind"][-1] == BEGIN:
                open_begins[phase] = mine[-1:].copy()
            begins, ends = mine[:-1], mine[1:]
            paired = (begins["kind"] == BEGIN) & (ends["kind"] == END) & (begins["step"] == ends["step"])
            yield phase, begins[paired], ends[paired]


def _num_unclosed(journal: Journal) -> int:
    kinds = journal.records["kind"]
    return int((kinds == BEGIN).sum() - (kinds == END).sum())


def _before(journal: Journal) -> dict[str, int]:
    """Return the nanoseconds of each phase in step 0. It lies at the front, so few records have to be looked at."""
    steps = journal.records["step"]
    num_before = len(steps) if not (steps > 0).any() else int(np.argmax(steps > 0))
    before = Journal(journal.header, journal.records[:num_before])
    total: dict[str, int] = {}
    for phase, begins, ends in _pairs(before, range(len(journal.phases))):
        name = journal.phases[phase]
        total[name] = total.get(name, 0) + int((ends["t_ns"] - begins["t_ns"]).sum())
    return {name: spent for name, spent in total.items() if spent}
