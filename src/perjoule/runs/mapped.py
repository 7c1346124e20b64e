"""Files of fixed-size records behind a JSON header, written through memory and readable after a kill at any instant.

Layout (little endian): 8 bytes of magic, a uint32 with the length of the JSON, the JSON, zeros up to a multiple of
4096 bytes; then records of one size. Each record carries its place (1, 2, 3, …) and a check field, so that the valid
prefix of the file is what a reader sees: no count is kept that could be torn.

The file grows in blocks that are *allocated* (not sparse) before they are mapped, so that a full disk is an error
message and never a SIGBUS. The pages belong to the kernel, so a killed process loses at most the record it was writing.

Writers do not import numpy: the sampler is a process of its own that should stay small.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perjoule.core.errors import RunFolderError

if TYPE_CHECKING:
    import numpy as np

HEADER_BYTES = 4096
"""A header takes a multiple of this."""
BLOCK_BYTES = 1 << 20
CHUNK_RECORDS = 1 << 20
"""A reader looks at this many records at a time, so that its memory does not grow with the run."""
MASK = 0xFFFFFFFF
MIX = 0x9E3779B1
"""An odd number with bits all over: multiplied by it, every bit of a field reaches the check."""
_LENGTH = struct.Struct("<I")


class MappedWriter:
    """The file and the block of it that is mapped now.

    A writer of records packs them into :attr:`buffer` from :attr:`base` to :attr:`end`, then calls :meth:`grow`.

    Args:
        path: the file to create; it must not exist.
        magic: its first 8 bytes.
        header: what the JSON says.
        record_bytes: size of a record, a divisor of the block's.
        noun: what the file is called in messages.

    Raises:
        RunFolderError: if the file exists, cannot be created, or the disk is full.
    """

    def __init__(self, path: Path, magic: bytes, header: dict[str, Any], record_bytes: int, noun: str) -> None:
        self.path = path
        self._magic, self._record_bytes, self._noun = magic, record_bytes, noun
        head = self._head(header)
        self.header_bytes = len(head)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunFolderError(f"cannot create the {noun} {path}: {error.strerror}") from error
        try:
            self._write_head(head)
            self._block_start = self.header_bytes
            self.buffer = self._allocate(self._block_start, 0)
        except RunFolderError:
            os.close(self._fd)
            raise

    @property
    def base(self) -> int:
        """Return where in the buffer the block begins."""
        return self._block_start % mmap.ALLOCATIONGRANULARITY

    @property
    def end(self) -> int:
        """Return where in the buffer the block ends."""
        return self.base + BLOCK_BYTES

    def _head(self, header: dict[str, Any]) -> bytes:
        body = json.dumps(header).encode()
        head = self._magic + _LENGTH.pack(len(body)) + body
        return head.ljust(-(-len(head) // HEADER_BYTES) * HEADER_BYTES, b"\0")

    def _write_head(self, head: bytes) -> None:
        try:
            written = os.pwrite(self._fd, head, 0)
        except OSError as error:
            raise RunFolderError(f"cannot write the {self._noun} {self.path}: {error.strerror}") from error
        if written != len(head):
            raise RunFolderError(f"cannot write the {self._noun} {self.path}: the disk is full")

    def replace_header(self, header: dict[str, Any]) -> None:
        """Write another header in the place of the first; of 4 KiB it is a page, which a kill does not tear.

        Raises:
            RunFolderError: if it takes more room than the first.
        """
        head = self._head(header)
        if len(head) > self.header_bytes:
            raise RunFolderError(
                f"{self.path}: {len(head)} bytes do not fit the {self._noun}'s header of {self.header_bytes >> 10} KiB"
            )
        self._write_head(head)

    def _allocate(self, start: int, num_records: int) -> mmap.mmap:
        """Reserve a block on the disk and map it."""
        try:
            os.posix_fallocate(self._fd, start, BLOCK_BYTES)
            page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            return mmap.mmap(self._fd, BLOCK_BYTES + start - page, offset=page)
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: cannot extend the {self._noun} by 1 MiB: {error.strerror}; "
                f"the {num_records} records before are kept"
            ) from error

    def grow(self, num_records: int) -> None:
        """Map the next block and close the full one. If that fails nothing has changed, and it may be tried again.

        Args:
            num_records: how many were written, for the message.

        Raises:
            RunFolderError: if the disk is full.
        """
        start = self._block_start + BLOCK_BYTES
        full = self.buffer
        self.buffer = self._allocate(start, num_records)
        self._block_start = start
        full.close()

    def sync(self) -> None:
        """Wait until everything is on the disk, against a loss of power.

        Raises:
            OSError: if the disk refuses.
        """
        os.fdatasync(self._fd)

    def close(self, num_records: int) -> None:
        """Cut the unused rest of the last block and close the file. May be called twice."""
        if self._fd < 0:
            return
        self.buffer.close()
        os.ftruncate(self._fd, self.header_bytes + num_records * self._record_bytes)
        os.close(self._fd)
        self._fd = -1


def read_header(path: Path, magic: bytes, noun: str, key: str) -> tuple[dict[str, Any], int]:
    """Return the header and the number of its bytes.

    Args:
        path: the file.
        magic: its first 8 bytes.
        noun: what the file is called in messages.
        key: of a list that the header must have.

    Raises:
        RunFolderError: if the file cannot be read, is of another sort, or its header is cut off or damaged.
    """
    front = len(magic) + _LENGTH.size
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            length = _LENGTH.unpack_from(head, len(magic))[0] if len(head) == HEADER_BYTES else 0
            num_bytes = -(-(front + length) // HEADER_BYTES) * HEADER_BYTES
            if head.startswith(magic) and num_bytes <= os.fstat(file.fileno()).st_size:
                head += file.read(num_bytes - HEADER_BYTES)
    except OSError as error:
        raise RunFolderError(f"cannot read the {noun} {path}: {error.strerror}") from error
    if len(head) < HEADER_BYTES or not head.startswith(magic):
        raise RunFolderError(f"{path} is not a {noun}, or its first 4 KiB are cut off")
    try:
        header = json.loads(head[front : front + length])
        len(header[key])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"the header of the {noun} {path} is damaged: {error}") from error
    return header, num_bytes


Sound = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]
"""From (num,) records and the (num,) uint64 places that they should have: which of them are sound."""


def read_records(path: Path, header_bytes: int, dtype: np.dtype[Any], sound: Sound) -> tuple[np.ndarray, int]:
    """Return the valid prefix of the records, and how many more are sound after the first unsound one.

    Args:
        path: a file whose header was read.
        header_bytes: its length.
        dtype: of a record.
        sound: tells sound records from torn ones.

    Returns:
        Records whose pages are read from the file when they are looked at, and 0 for a file that was merely cut off:
        more means that it was damaged.
    """
    import numpy as np

    whole = (path.stat().st_size - header_bytes) // dtype.itemsize
    if whole <= 0:
        return np.empty(0, dtype), 0
    records = np.memmap(path, dtype, "r", header_bytes, (whole,))
    valid, num_sound = whole, 0
    for start in range(0, whole, CHUNK_RECORDS):
        chunk = records[start : start + CHUNK_RECORDS]
        good = sound(chunk, np.arange(start + 1, start + 1 + len(chunk), dtype=np.uint64))
        if valid == whole and not good.all():
            valid = start + int(np.argmin(good))
        num_sound += int(good.sum())
    return np.asarray(records[:valid]), num_sound - valid
