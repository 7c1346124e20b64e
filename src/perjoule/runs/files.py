"""Writing files so that a kill, a full disk or a reader never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from perjoule.core.errors import RunFolderError

_NOT_OFFERED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EACCES, errno.EBADF}


def flush(file: IO[bytes]) -> None:
    """Have the system put what was written to a file on the disk.

    Raises:
        OSError: if the disk is full or fails.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Have the system put a folder, the names of its files, on the disk.

    Some file systems cannot (CIFS, some FUSE and WSL mounts). That is no failed write: the files have been flushed.

    Raises:
        OSError: if the disk is full or fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a neighbour, flush it to the disk, then rename it over ``path``.

    Raises:
        RunFolderError: if the disk is full or the folder cannot be written; ``path`` keeps its old content.
    """
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            flush(file)

    replace_atomically(path, write)


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then rename it over ``path``.

    Raises:
        RunFolderError: as :func:`write_atomically`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: if it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
