"""Which files of a folder are read, and which are left out and why.

Folders are searched to the bottom, linked ones too, each once, so that a link to a folder above is no endless loop.
What is not read is counted by reason and named: a corpus of which half is missing looks like a whole one.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perjoule.core.errors import DataError
from perjoule.core.printable import one_line

ENDING, HIDDEN, UNFINISHED, LOG, NO_FILE, LOOP = (
    "of another ending",
    "hidden",
    "of an unfinished write",
    "of a table's own log",
    "no regular file",
    "a link to a folder above",
)
"""Why a file or a folder was left out."""

_NAMED = 3
_WRITERS = {
    UNFINISHED: ("_temporary", "_started_*", "_SUCCESS", "_committed_*"),
    LOG: ("_delta_log", "_change_data", "_delta_index", "_spark_metadata", "_metadata", "_common_metadata"),
}
"""What Spark, Delta and Parquet writers leave beside their data."""
_OURS = ("manifest.json", "provenance.json")
"""What our own steps write beside documents."""


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that are not read, for one reason.

    Args:
        count: of them; a folder counts once.
        names: of the first few, relative to the root; a folder's ends with a slash.
    """

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """What a folder holds.

    Args:
        files: relative POSIX paths, sorted.
        left_out: by reason.
    """

    files: tuple[str, ...]
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


def walk(root: Path, accepts: Callable[[str], bool], excluded: frozenset[str] = frozenset()) -> Walk:
    """Find all files with accepted names below a folder.

    Args:
        root: a folder.
        accepts: takes the last part of a path.
        excluded: names of subfolders that are left out without a word.

    Raises:
        DataError: if a folder cannot be read.
    """
    return _Walking(root, accepts, excluded).run()


def left_out_lines(left_out: Mapping[str, LeftOut], accepted: str) -> Iterator[str]:
    """Yield a line for each reason, with the first names.

    Args:
        left_out: by reason.
        accepted: endings of files that are read.
    """
    for reason, those in left_out.items():
        more = f" and {those.count - len(those.names):,} more" if those.count > len(those.names) else ""
        hint = f"; accepted endings: {accepted}" if reason == ENDING else ""
        yield f"not read: {those.count:,} {reason} ({', '.join(map(one_line, those.names))}{more}){hint}"


def left_out_facts(left_out: Mapping[str, LeftOut]) -> dict[str, Any]:
    """Return the counts and the first names by reason, for a manifest (JSON)."""
    return {
        reason: {"count": those.count, "names": [one_line(name) for name in those.names]}
        for reason, those in left_out.items()
    }


class _Walking:
    """One walk.

    Folders that are really there are read first, then what links lead to, so that a folder is known by its own name.
    """

    def __init__(self, root: Path, accepts: Callable[[str], bool], excluded: frozenset[str]) -> None:
        self._root, self._accepts, self._excluded = root, accepts, excluded
        self._above = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
        self._seen: set[tuple[int, int]] = set()
        self._found: list[str] = []
        self._links: list[Path] = []
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def run(self) -> Walk:
        """Read the folder, and then folders that links lead to until no new one is found."""
        self._read(self._root)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                identity = _identity(link)
                if identity in self._above:
                    self._leave_out(LOOP, link)
                elif identity not in self._seen:
                    self._read(link)
        left_out = {
            reason: LeftOut(count, tuple(sorted(self._names[reason])[:_NAMED]))
            for reason, count in sorted(self._counts.items())
        }
        return Walk(tuple(sorted(self._found)), left_out)

    def _read(self, top: Path) -> None:
        """Read a folder and what is below it, links to folders excepted."""
        for folder, subfolders, names in os.walk(top, onerror=_refuse):
            here = Path(folder)
            self._seen.add(_identity(here))
            subfolders[:] = sorted(name for name in subfolders if self._enters(here / name))
            for name in names:
                self._take(here / name)

    def _enters(self, folder: Path) -> bool:
        """Return whether a subfolder is read now; one that a link leads to may be read later."""
        if folder.name in self._excluded:
            return False
        if (reason := _not_data(folder.name)) is not None:
            self._leave_out(reason, folder, "/")
            return False
        if folder.is_symlink():
            self._links.append(folder)
            return False
        return _identity(folder) not in self._seen

    def _take(self, path: Path) -> None:
        """Note a file, or why it is left out."""
        reason = _not_data(path.name)
        if reason is None and not self._accepts(path.name):
            reason = ENDING
        if reason is None and not _may_be_read(path):
            reason = NO_FILE
        if reason is None:
            self._found.append(path.relative_to(self._root).as_posix())
        elif path.parent != self._root or path.name not in _OURS:
            self._leave_out(reason, path)

    def _leave_out(self, reason: str, path: Path, ending: str = "") -> None:
        """Count what is not read, and remember the first names."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        names.append(path.relative_to(self._root).as_posix() + ending)
        if len(names) > 2 * _NAMED:
            self._names[reason] = sorted(names)[:_NAMED]


def _not_data(name: str) -> str | None:
    """Return why a file or folder of this name holds no documents, whatever its ending."""
    if name.startswith("."):
        return HIDDEN
    for reason, patterns in _WRITERS.items():
        if _matches(name, patterns):
            return reason
    return None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _may_be_read(path: Path) -> bool:
    """Return whether a path is a regular file; what cannot be looked at is, so that reading it says why it cannot."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from any other, whatever it is called.

    Raises:
        DataError: if it cannot be looked at.
    """
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    """Let no folder be left out because it cannot be read."""
    raise DataError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error
