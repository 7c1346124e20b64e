"""What a source was at one moment, to notice that it has changed since."""

from __future__ import annotations

from dataclasses import dataclass

from perjoule.core.errors import DataError
from perjoule.data.manifest import checksum
from perjoule.data.sources import Source


@dataclass(frozen=True)
class Seen:
    """What a source was when work began.

    Args:
        documents: a hash that stands for them.
        stamps: name, size and time of change of every file.
    """

    documents: str
    stamps: tuple[tuple[str, int, int], ...]


def look_at(source: Source, hash_documents: bool = True) -> Seen:
    """Return what a source is now.

    Args:
        source: the documents.
        hash_documents: read all files (1 GB/s), or trust their names, sizes and times.

    Raises:
        DataError: if a file cannot be read.
    """
    files = stamps(source)
    documents = source.fingerprint() if hash_documents else checksum({"files": files})
    return Seen(documents, files)


def stamps(source: Source) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change (ns) of every file.

    Raises:
        DataError: if a file cannot be read.
    """
    found = []
    for name in source.files:
        try:
            state = (source.root / name).stat()
        except OSError as error:
            raise DataError(f"cannot read {source.root / name}: {error.strerror}") from error
        found.append((name, state.st_size, state.st_mtime_ns))
    return tuple(found)
