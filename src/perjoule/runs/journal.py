"""The event journal: fixed-size records in a memory-mapped file, readable after a kill at any instant.

Layout (little endian): one header block of 4096 bytes (magic, length, JSON), then records of 32 bytes.

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

The file grows in blocks that are *allocated* (not sparse) before they are mapped, so that a full disk is an error
message and never a SIGBUS. The valid prefix of the file is what a reader sees: no count is kept that could be torn.
The pages belong to the kernel, so a killed process loses at most the record it was writing.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perjoule.core.errors import RunFolderError

MAGIC = b"PJEVENTS"
HEADER_BYTES = 4096
RECORD = struct.Struct("<qqIHHII")
BLOCK_BYTES = 1 << 20
BEGIN, END = 0, 1
CHUNK_RECORDS = 1 << 20
"""A reader looks at this many records at a time, so that its memory does not grow with the run."""

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
_MASK = 0xFFFFFFFF
_MIX = 0x9E3779B1


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
        header = {
            **(facts or {}),
            "phases": list(phases),
            "pid": os.getpid(),
            "clock": {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()},
        }
        body = json.dumps(header).encode()
        if len(body) > HEADER_BYTES - 12:
            raise RunFolderError(f"{path}: {len(phases)} phase names do not fit the journal's header of 4 KiB")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(self._fd, (MAGIC + struct.pack("<I", len(body)) + body).ljust(HEADER_BYTES, b"\0"))
        except OSError as error:
            raise RunFolderError(f"cannot create the journal {path}: {error.strerror}") from error
        self._block_start = HEADER_BYTES
        try:
            self._map = self._allocate(self._block_start)
        except RunFolderError:
            os.close(self._fd)
            raise
        self._offset = 0
        self._direct = _Now()
        self.edge = self._build_edge()
        """``edge(code, now)`` returns a function that writes one record with the step that ``now`` has then. It takes
        any arguments, so that it can be an ``__enter__`` or an ``__exit__``."""

    def code(self, phase: str, kind: int) -> int:
        """Return the code of the begin or the end of ``phase``: ``phase << 1 | kind``."""
        return self.phases.index(phase) << 1 | kind

    def _allocate(self, start: int) -> mmap.mmap:
        """Reserve the next block on the disk and map it."""
        try:
            os.posix_fallocate(self._fd, start, BLOCK_BYTES)
            page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(self._fd, BLOCK_BYTES + start - page, offset=page)
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: cannot extend the journal by 1 MiB: {error.strerror}; "
                f"the {self.num_records} records before are kept"
            ) from error
        self._base = start - page
        return mapped

    def _grow(self) -> None:
        """Map the next block and close the full one. If that fails nothing has changed, and it may be tried again."""
        start = self._block_start + BLOCK_BYTES
        full = self._map
        self._map = self._allocate(start)
        self._block_start = start
        full.close()

    def mark(self, step: int, code: int) -> None:
        """Write one record; ``code`` is from :meth:`code`. For a phase that recurs, :meth:`edge` is faster."""
        self._direct.step = step
        self.edge(code, self._direct)()

    def _build_edge(self) -> Callable[[int, HasStep], Callable[..., None]]:
        """Return the maker of writers, all of which share one place in the file.

        A writer is a closure over local names: no attribute look-ups, no allocation that stays, one Python frame. That
        matters because between two training phases the caches are cold, and every line of memory touched costs.
        """
        clock, cpu_clock, pack = time.monotonic_ns, time.process_time_ns, RECORD.pack_into
        size, mask, mix = RECORD.size, _MASK, _MIX
        buffer, offset, end, sequence = self._map, self._base, self._base + BLOCK_BYTES, 0

        def edge(code: int, now: HasStep) -> Callable[..., None]:
            phase, kind = code >> 1, code & 1

            def write(*_: object) -> None:
                nonlocal buffer, offset, end, sequence
                if offset == end:
                    self._grow()
                    buffer, offset, end = self._map, self._base, self._base + BLOCK_BYTES
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
        if self._fd < 0:
            return
        self._map.close()
        os.ftruncate(self._fd, HEADER_BYTES + self.num_records * RECORD.size)
        os.close(self._fd)
        self._fd = -1


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
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise RunFolderError(f"cannot read the journal {path}: {error.strerror}") from error
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        raise RunFolderError(f"{path} is not a journal, or its first 4 KiB are cut off")
    (length,) = struct.unpack_from("<I", head, len(MAGIC))
    try:
        header = json.loads(head[len(MAGIC) + 4 : len(MAGIC) + 4 + length])
        num_phases = len(header["phases"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"the header of the journal {path} is damaged: {error}") from error
    whole = (size - HEADER_BYTES) // RECORD.size
    if whole == 0:
        return Journal(header, np.empty(0, RECORD_DTYPE))
    records = np.memmap(path, RECORD_DTYPE, "r", HEADER_BYTES, (whole,))
    valid, lost = _valid_prefix(records, num_phases)
    return Journal(header, np.asarray(records[:valid]), lost)


def _valid_prefix(records: np.ndarray, num_phases: int) -> tuple[int, int]:
    """Return how many records from the start are sound, and how many more are sound after the first unsound one."""
    valid, num_sound = len(records), 0
    for start in range(0, len(records), CHUNK_RECORDS):
        sound = _sound(records[start : start + CHUNK_RECORDS], start, num_phases)
        if valid == len(records) and not sound.all():
            valid = start + int(np.argmin(sound))
        num_sound += int(sound.sum())
    return valid, num_sound - valid


def _sound(records: np.ndarray, num_before: int, num_phases: int) -> np.ndarray:
    """Return which records carry the right sequence number and check field and values that a writer can write.

    The last condition finds the few flipped bits that the check field cannot see: it is made of the low bits only.
    """
    mask, mix, half = np.uint64(_MASK), np.uint64(_MIX), np.uint64(32)
    expected = np.arange(num_before + 1, num_before + len(records) + 1, dtype=np.uint64)
    t_ns, cpu_ns = records["t_ns"].astype(np.uint64), records["cpu_ns"].astype(np.uint64)
    code = records["phase"].astype(np.uint64) << np.uint64(1) | records["kind"]
    mixed = t_ns ^ cpu_ns << np.uint64(1) ^ (records["step"].astype(np.uint64) << np.uint64(16) | code) * mix
    check = (mixed ^ mixed >> half ^ expected * mix) & mask
    possible = (records["kind"] <= END) & (records["phase"] < num_phases) & (records["cpu_ns"] >= 0)
    sound: np.ndarray = (records["sequence"] == (expected & mask)) & (records["check"] == check) & possible
    return sound
