"""Which documents are copies of an earlier one, found on disk in bounded memory.

The hash of every document, 16 bytes, is written to files in the order of the documents. They are compared in slices of
the values that a hash can take: 2 million hashes at once, some 100 MB, however many documents there are.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from perjoule.core.errors import DataError

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


class CopyCount(ExitStack):
    """Keeps the hashes of documents in a temporary file, to count those that are copies.

    Args:
        wanted: if not, nothing is written and no copy is found.
    """

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self._wanted = wanted
        self._folder = Path()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._wanted:
            with _temporary():
                self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="perjoule-")))
                self._file = (self._folder / "hashes").open("wb")
            self.callback(self._close)
        return self

    def add(self, text: str) -> None:
        """Note the hash of a document."""
        if self._file is not None:
            with _temporary():
                self._file.write(content_hash(text))

    def count_copies(self) -> int:
        """Compare all hashes; nothing can be added afterwards."""
        if self._file is None:
            return 0
        with _temporary():
            self._file.close()
            return mark_copies([self._folder / "hashes"], self._folder / "copies")

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # closing tries again to write what is left
                self._file.close()


@contextmanager
def _temporary() -> Iterator[None]:
    """Say what to do about a temporary folder that is full, read-only or missing.

    Raises:
        DataError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot count copies of documents in a temporary folder: {error.strerror or error}; set TMPDIR to a "
            "folder with 17 bytes free for each document, or leave the count out with duplicates=false"
        ) from error
