"""Write the readings of meters: one record of 32 bytes for each reading (``runs.mapped`` has the file around it).

====== ====== =====================================================================
offset type   field
====== ====== =====================================================================
0      int64  ``t_before_ns``: CLOCK_MONOTONIC before the reading, nanoseconds
8      int64  ``raw``: the reading in its sensor's unit
16     uint32 ``duration_ns``: how long the reading took, at most 4.29 s
20     uint16 ``channel``: index into the header's list of channels
22     uint16 ``flag``: 0 a reading; 1 unreadable, ``raw`` is no value
24     uint32 ``sequence``: 1, 2, 3, …
28     uint32 ``check``: mixes all of the above; a torn record does not fit it
====== ====== =====================================================================
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perjoule.runs.mapped import MASK, MIX, MappedWriter

MAGIC, NOUN = b"PJSAMPLE", "sample file"
RECORD = struct.Struct("<qqIHHII")
SCHEMA_VERSION = 1
READABLE, UNREADABLE = 0, 1
_LIMIT = 1 << 63


class SampleWriter:
    """Append readings to a new file.

    Args:
        path: the file to create; it must not exist.
        channels: what is known of each sensor, as JSON; their order gives their numbers.
        facts: more JSON for the header (process, clock anchors and schema are added here).

    Raises:
        RunFolderError: if the file exists, cannot be created, or the disk is full.
    """

    def __init__(self, path: Path, channels: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        self.num_records = 0
        header = {
            **facts,
            "schema": SCHEMA_VERSION,
            "pid": os.getpid(),
            "clock": {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()},
            "channels": [dict(channel) for channel in channels],
        }
        self._file = MappedWriter(path, MAGIC, header, RECORD.size, NOUN)
        self._offset = self._file.base

    def put(self, channel: int, t_before_ns: int, t_after_ns: int, raw: int | None) -> None:
        """Write one reading.

        Args:
            channel: its number.
            t_before_ns: CLOCK_MONOTONIC before it was made.
            t_after_ns: after it was made.
            raw: the value; None if there was none. What does not fit 64 bits is none.

        Raises:
            RunFolderError: if the disk is full.
        """
        if self._offset == self._file.end:
            self._file.grow(self.num_records)
            self._offset = self._file.base
        flag, value = (READABLE, raw) if raw is not None and -_LIMIT <= raw < _LIMIT else (UNREADABLE, 0)
        duration_ns = min(max(t_after_ns - t_before_ns, 0), MASK)
        sequence = self.num_records + 1
        mixed = t_before_ns ^ value * MIX ^ (duration_ns << 32 | channel << 16 | flag) * MIX
        check = (mixed ^ mixed >> 32 ^ sequence * MIX) & MASK
        RECORD.pack_into(
            self._file.buffer,
            self._offset,
            t_before_ns,
            value,
            duration_ns,
            channel,
            flag,
            sequence & MASK,
            check,
        )
        self._offset += RECORD.size
        self.num_records = sequence

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: if the disk refuses.
        """
        self._file.sync()

    def close(self) -> None:
        """Cut the unused rest of the last block and close the file. May be called twice."""
        self._file.close(self.num_records)


def attempt_path(path: Path, attempt: int) -> Path:
    """Return the file of another sampler of the same segment and node (``runs.folder.sample_path`` names them)."""
    stem, _, _ = path.stem.rpartition("-")
    return path.with_name(f"{stem}-{attempt}.bin")
