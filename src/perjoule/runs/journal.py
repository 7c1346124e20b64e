"""The event journal: one record of 32 bytes for each begin and end of a phase (``runs.mapped`` has the file around it).

====== ====== =====================================================================
offset type   field
====== ====== =====================================================================
0      int64  ``t_ns``: CLOCK_MONOTONIC, nanoseconds
8      int64  ``cpu_ns``: CPU time of this process, all threads, nanoseconds
16     uint32 ``step``: number of the optimizer step, from 1; 0 before training
20     uint16 ``phase``: index into the header's list of phase names
22     uint16 ``kind``: 0 begins the phase, 1 ends it
24     uint32 ``sequence``: 1, 2, 3, …
28     uint32 ``check``: mixes all of the above; a torn record does not fit it
====== ====== =====================================================================
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perjoule.runs.mapped import CHUNK_RECORDS as CHUNK_RECORDS  # noqa: PLC0414  (measure reads in chunks of it)
from perjoule.runs.mapped import MASK, MIX, MappedWriter, read_header, read_records

MAGIC, NOUN = b"PJEVENTS", "journal"
RECORD = struct.Struct("<qqIHHII")
BEGIN, END = 0, 1

RECORD_DTYPE = np.dtype(
    [
        ("t_ns", "<i8"),
        ("cpu_ns", "<i8"),
        ("step", "<u4"),
        ("phase", "<u2"),
        ("kind", "<u2"),
        ("sequence", "<u4"),
        ("check", "<u4"),
    ]
)


class HasStep(Protocol):
    """Knows the number of the current step."""

    step: int


class _Now:
    """A step number that stands by itself."""

    step = 0


class JournalWriter:
    """Append begin and end records of phases to a new file.

    Args:
        path: the file to create; it must not exist.
        phases: the phase names, whose order gives their numbers.
        facts: more JSON for the header (rank, segment, clock anchors are added here).

    Raises:
        RunFolderError: if the file exists, cannot be created, or the disk is full.
    """

    def __init__(self, path: Path, phases: tuple[str, ...], facts: dict[str, Any] | None = None) -> None:
        self.path = path
        self.phases = phases
        self.num_records = 0
        self._facts = {
            **(facts or {}),
            "pid": os.getpid(),
            "clock": {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()},
        }
        self._file = MappedWriter(path, MAGIC, self._header(phases), RECORD.size, NOUN)
        self._direct = _Now()
        self.edge = self._build_edge()
        """``edge(code, now)`` returns a function that writes one record with the step that ``now`` has then. It takes
        any arguments, so that it can be an ``__enter__`` or an ``__exit__``. Other clocks than those of this process
        may follow: ``edge(code, now, clock, cpu_clock)``."""

    def _header(self, phases: tuple[str, ...]) -> dict[str, Any]:
        return {**self._facts, "phases": list(phases)}

    def add_phase(self, phase: str) -> None:
        """Add a name to the header, for loops whose phases are not known in advance.

        Raises:
            RunFolderError: if the header has no room for it; it was made for the names that were known at first.
        """
        phases = (*self.phases, phase)
        self._file.replace_header(self._header(phases))
        self.phases = phases

    def code(self, phase: str, kind: int) -> int:
        """Return the code of the begin or the end of ``phase``: ``phase << 1 | kind``."""
        return self.phases.index(phase) << 1 | kind

    def mark(self, step: int, code: int) -> None:
        """Write one record; ``code`` is from :meth:`code`. For a phase that recurs, :meth:`edge` is faster."""
        self._direct.step = step
        self.edge(code, self._direct)()

    def put(self, t_ns: int, cpu_ns: int, step: int, code: int) -> None:
        """Write one record of something that took place at a given time, such as on a device.

        Args:
            t_ns: CLOCK_MONOTONIC, nanoseconds.
            cpu_ns: CPU time of this process then, nanoseconds.
            step: number of the step.
            code: from :meth:`code`.
        """
        self._direct.step = step
        self.edge(code, self._direct, lambda: t_ns, lambda: cpu_ns)()

    def _build_edge(self) -> Callable[..., Callable[..., None]]:
        """Return the maker of writers, all of which share one place in the file.

        A writer is a closure over local names: no attribute look-ups, no allocation that stays, one Python frame. That
        matters because between two training phases the caches are cold, and every line of memory touched costs.
        """
        pack, size, mask, mix = RECORD.pack_into, RECORD.size, MASK, MIX
        file = self._file
        buffer, offset, end, sequence = file.buffer, file.base, file.end, 0

        def edge(
            code: int,
            now: HasStep,
            clock: Callable[[], int] = time.monotonic_ns,
            cpu_clock: Callable[[], int] = time.process_time_ns,
        ) -> Callable[..., None]:
            phase, kind = code >> 1, code & 1

            def write(*_: object) -> None:
                nonlocal buffer, offset, end, sequence
                if offset == end:
                    file.grow(sequence)
                    buffer, offset, end = file.buffer, file.base, file.end
                sequence += 1
                # The CPU clock is a system call, where a busy system may switch processes. It is read inside the
                # phase, so that such a wait counts to the phase that was interrupted, not to what lies between phases.
                if kind:
                    cpu_ns = cpu_clock()
                    t_ns = clock()
                else:
                    t_ns = clock()
                    cpu_ns = cpu_clock()
                step = now.step
                mixed = t_ns ^ cpu_ns << 1 ^ (step << 16 | code) * mix
                check = (mixed ^ mixed >> 32 ^ sequence * mix) & mask
                pack(buffer, offset, t_ns, cpu_ns, step, phase, kind, sequence & mask, check)
                offset += size
                self.num_records = sequence

            return write

        return edge

    def close(self) -> None:
        """Cut the unused rest of the last block and close the file."""
        self._file.close(self.num_records)


@dataclass(frozen=True)
class Journal:
    """What a journal file holds.

    Args:
        header: the facts the writer gave, with ``phases``, ``pid`` and ``clock``.
        records: the valid prefix (``RECORD_DTYPE``), in order; pages are read from the file when they are looked at.
        num_lost: sound records after the first unsound one. They cannot be trusted to be in place and are not in
            ``records``. 0 for a journal that was merely cut off; more means that the file was damaged.
    """

    header: dict[str, Any]
    records: np.ndarray
    num_lost: int = 0

    @property
    def phases(self) -> list[str]:
        """Return the phase names in the order of their numbers."""
        return list(self.header["phases"])


def read_journal(path: Path) -> Journal:
    """Read the valid prefix of a journal, live, finished, torn or truncated.

    Raises:
        RunFolderError: if the file is not a journal or its header is cut off or damaged.
    """
    header, header_bytes = read_header(path, MAGIC, NOUN, "phases")
    num_phases = len(header["phases"])
    records, num_lost = read_records(
        path, header_bytes, RECORD_DTYPE, lambda chunk, places: _sound(chunk, places, num_phases)
    )
    return Journal(header, records, num_lost)


def _sound(records: np.ndarray, places: np.ndarray, num_phases: int) -> np.ndarray:
    """Return which records carry the right sequence number and check field and values that a writer can write.

    The last condition finds the few flipped bits that the check field cannot see: it is made of the low bits only.
    """
    mask, mix, half = np.uint64(MASK), np.uint64(MIX), np.uint64(32)
    t_ns, cpu_ns = records["t_ns"].astype(np.uint64), records["cpu_ns"].astype(np.uint64)
    code = records["phase"].astype(np.uint64) << np.uint64(1) | records["kind"]
    mixed = t_ns ^ cpu_ns << np.uint64(1) ^ (records["step"].astype(np.uint64) << np.uint64(16) | code) * mix
    check = (mixed ^ mixed >> half ^ places * mix) & mask
    possible = (records["kind"] <= END) & (records["phase"] < num_phases) & (records["cpu_ns"] >= 0)
    sound: np.ndarray = (records["sequence"] == (places & mask)) & (records["check"] == check) & possible
    return sound
