"""Which documents are copies of an earlier one, found on disk in bounded memory.

The hash of every document, 16 bytes, is written to files in the order of the documents. They are compared in slices of
the values that a hash can take: 2 million hashes at once, some 100 MB, however many documents there are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16

_HASHES_AT_ONCE = 1 << 21


def content_hash(text: str) -> bytes:
    """Return 128 bits of BLAKE2b; two different texts among 10¹² share them with a chance of 10⁻¹⁵."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def document_starts(files: Sequence[Path]) -> list[int]:
    """Return how many hashes come before each file, and then all."""
    counts = (file.stat().st_size // HASH_BYTES for file in files)
    return list(itertools.accumulate(counts, initial=0))


def mark_copies(files: Sequence[Path], output: Path) -> int:
    """Compare all hashes, and write a byte for each: 1 if the document is a copy of an earlier one.

    Args:
        files: of hashes, in the order of the documents.
        output: the file to write.

    Returns:
        The number of copies.
    """
    starts = document_starts(files)
    total = starts[-1]
    if total == 0:
        output.write_bytes(b"")
        return 0
    copies = np.memmap(output, np.bool_, "w+", shape=total)
    num_slices = -(-total // _HASHES_AT_ONCE)
    num_copies = 0
    for one in range(num_slices):
        values, places = [], []
        for file, start in zip(files, starts, strict=False):
            hashes = np.fromfile(file, "<u8").reshape(-1, 2)
            rows = np.flatnonzero(hashes[:, 0] % num_slices == one)
            values.append(hashes[rows])
            places.append(rows + start)
        value, place = np.concatenate(values), np.concatenate(places)
        order = np.lexsort((value[:, 1], value[:, 0]))  # stable: of equal hashes, the first document stays first
        value = value[order]
        same_as_before = np.all(value[1:] == value[:-1], axis=1)
        copies[place[order][1:][same_as_before]] = True
        num_copies += int(np.count_nonzero(same_as_before))
    copies.flush()
    return num_copies


def read_copies(marks: Path, begin: int, end: int) -> npt.NDArray[np.bool_]:
    """Return whether the documents from ``begin`` to ``end`` (exclusive) are copies."""
    return np.fromfile(marks, np.bool_, count=end - begin, offset=begin)
