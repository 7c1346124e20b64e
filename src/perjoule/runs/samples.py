"""Read the readings of meters back: finished, live, or cut off by a kill."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError
from perjoule.runs.folder import SAMPLES
from perjoule.runs.mapped import CHUNK_RECORDS, MASK, MIX, read_header, read_records
from perjoule.runs.sample_writer import MAGIC, NOUN, READABLE, SCHEMA_VERSION, UNREADABLE

Ints = NDArray[np.int64]
RECORD_DTYPE = np.dtype(
    [
        ("t_before_ns", "<i8"),
        ("raw", "<i8"),
        ("duration_ns", "<u4"),
        ("channel", "<u2"),
        ("flag", "<u2"),
        ("sequence", "<u4"),
        ("check", "<u4"),
    ]
)
_PIECE_RECORDS = 1 << 11
"""So many are looked at by a reader of a growing file: a few minutes of readings, not the whole reserved block."""


@dataclass(frozen=True)
class Samples:
    """What a sample file holds.

    Args:
        header: what the sampler said of itself: ``unavailable``, ``node``, ``boot_id``, ``pid``, ``processes``,
            ``rate_hz``, ``mode``, ``clock``, ``schema``, ``channels``.
        channels: what is known of each sensor; the last one is the sampler's own processor time.
        records: the valid prefix (``RECORD_DTYPE``), in order; pages are read from the file when they are looked at.
        num_lost: sound records after the first unsound one; more than 0 means that the file was damaged.
    """

    header: Mapping[str, Any]
    channels: tuple[Mapping[str, Any], ...]
    records: np.ndarray
    num_lost: int = 0

    def of(self, channel: int) -> tuple[Ints, Ints, Ints]:
        """Return the readable readings of a channel: moments before and after each, ns, and the values."""
        parts = []
        for start in range(0, len(self.records), CHUNK_RECORDS):
            chunk = self.records[start : start + CHUNK_RECORDS]
            parts.append(chunk[(chunk["channel"] == channel) & (chunk["flag"] == READABLE)])
        mine = np.concatenate(parts) if parts else np.empty(0, RECORD_DTYPE)
        before: Ints = mine["t_before_ns"].astype(np.int64)
        return before, before + mine["duration_ns"], mine["raw"].astype(np.int64)


def read_samples(path: Path) -> Samples:
    """Read the valid prefix of a sample file.

    Raises:
        RunFolderError: if it is no such file, its header is cut off or damaged, or a newer perjoule wrote it.
    """
    return SampleReader(path).all()


class SampleReader:
    """Reads a sample file piece by piece while it grows.

    Args:
        path: the file.

    Raises:
        RunFolderError: as :func:`read_samples`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self._header_bytes = read_header(path, MAGIC, NOUN, "channels")
        schema = self.header.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA_VERSION:
            raise RunFolderError(
                f"{path} has schema {schema!r}; this perjoule reads 1 to {SCHEMA_VERSION}: upgrade perjoule"
            )
        self.channels: tuple[Mapping[str, Any], ...] = tuple(self.header["channels"])
        self._num_read = 0

    def all(self) -> Samples:
        """Return everything that is there now."""
        records, num_lost = read_records(self.path, self._header_bytes, RECORD_DTYPE, self._sound)
        return Samples(self.header, self.channels, records, num_lost)

    def new(self) -> Samples:
        """Return what has come since the last call.

        Raises:
            RunFolderError: if the file cannot be read any more.
        """
        pieces: list[np.ndarray] = []
        try:
            with self.path.open("rb") as file:
                while not pieces or len(pieces[-1]) == _PIECE_RECORDS:
                    pieces.append(self._piece(file.fileno()))
        except OSError as error:
            raise RunFolderError(f"cannot read the {NOUN} {self.path}: {error.strerror}") from error
        return Samples(self.header, self.channels, np.concatenate(pieces))

    def _piece(self, descriptor: int) -> np.ndarray:
        """Return the next sound records; fewer than a piece if there are no more."""
        offset = self._header_bytes + self._num_read * RECORD_DTYPE.itemsize
        data = os.pread(descriptor, _PIECE_RECORDS * RECORD_DTYPE.itemsize, offset)
        records = np.frombuffer(data, RECORD_DTYPE, len(data) // RECORD_DTYPE.itemsize)
        places = np.arange(self._num_read + 1, self._num_read + 1 + len(records), dtype=np.uint64)
        good = self._sound(records, places)
        valid = len(records) if good.all() else int(np.argmin(good))
        self._num_read += valid
        return records[:valid]

    def _sound(self, records: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return which records carry the right sequence number and check field and values that a writer can write."""
        mask, mix, half = np.uint64(MASK), np.uint64(MIX), np.uint64(32)
        before, raw = records["t_before_ns"].astype(np.uint64), records["raw"].astype(np.uint64)
        meta = records["duration_ns"].astype(np.uint64) << half | records["channel"].astype(np.uint64) << np.uint64(16)
        mixed = before ^ raw * mix ^ (meta | records["flag"]) * mix
        check = (mixed ^ mixed >> half ^ places * mix) & mask
        possible = (records["flag"] <= UNREADABLE) & (records["channel"] < len(self.channels))
        sound: np.ndarray = (records["sequence"] == (places & mask)) & (records["check"] == check) & possible
        return sound


def sample_files(run: Path, segment: int) -> list[Path]:
    """Return the sample files of a segment, by node, then in the order in which their samplers were started."""
    found = []
    for path in (run / SAMPLES).glob(f"{segment:04d}-*.bin"):
        name = re.fullmatch(r"\d+-(.+)-(\d+)\.bin", path.name)
        if name is not None:
            found.append((name[1], int(name[2]), path))
    return [path for _, _, path in sorted(found)]
