"""Small files of one JSON object per line, to which several processes may append and which a kill does not spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perjoule.core.errors import RunFolderError


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one object in one system call; a line that a kill cut off before stays by itself.

    Raises:
        RunFolderError: if the disk is full or the folder is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + json.dumps(line, allow_nan=False) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file in order; none if there is no file. Damaged lines are skipped.

    Raises:
        RunFolderError: if the file exists and cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
