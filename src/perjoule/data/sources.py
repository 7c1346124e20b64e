"""Where documents come from: the files of the standard library, or text, JSON-lines and parquet files.

A source lists its files when it is made and reads them when asked, one document after the other, as often as needed:
memory does not grow with the corpus. What cannot be trained on (a null cell, an empty one, bytes, a file that is not
UTF-8) is counted by reason and skipped; what makes the rest doubtful (a broken line, a cut-off file) is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perjoule.core.errors import DataError, MissingExtra, nearest, suggestion

SUFFIXES = (".txt", ".jsonl", ".parquet")
NULL, EMPTY, NOT_TEXT, NOT_UTF8 = "null", "empty", "not_text", "not_utf8"
"""Why a document was skipped."""

_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "idle_test", "turtledemo"}
)
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Document:
    """A piece of text that is not continued elsewhere.

    Args:
        name: where it stands: the file's relative path, with the row's number in a file of rows (``a.jsonl:7``).
        text: never empty, always encodable as UTF-8.
        key: what decides its split: the name of a file, the content of a row (so that copies stay together).
    """

    name: str
    text: str
    key: str


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Args:
        root: the folder that the names are relative to.
        files: relative POSIX paths, sorted.
        column: the field that holds the text of a row.
        facts: more for the manifest (JSON).
    """

    root: Path
    files: tuple[str, ...]
    column: str = "text"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Return a hash of the names and bytes of all files, and of the column where rows are read.

        Raises:
            DataError: if a file cannot be read.
        """
        total = hashlib.blake2b(digest_size=16)
        for name in self.files:
            path = self.root / name
            with _reading(path), path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b).digest()
            column = self.column if path.suffix in {".jsonl", ".parquet"} else ""
            total.update(repr((name, column)).encode(errors="surrogateescape") + content)
        return total.hexdigest()

    def documents(self, skipped: Counter[str]) -> Iterator[Document]:
        """Read every document.

        Args:
            skipped: counts what is left out, by reason (``null``, ``empty``, ``not_text``, ``not_utf8``).

        Raises:
            DataError: for an unreadable or damaged file, a broken line, or a column that no row has.
            MissingExtra: for a parquet file without pyarrow.
        """
        for name in self.files:
            path = self.root / name
            if path.suffix == ".jsonl":
                rows = _jsonl_rows(path, self.column, skipped)
            elif path.suffix == ".parquet":
                rows = _parquet_rows(path, self.column)
            else:
                text = _file_text(path, skipped)
                if text is not None:
                    yield Document(name, text, key=name)
                continue
            for number, value in rows:
                text = _usable(value, skipped)
                if text is not None:
                    yield Document(f"{name}:{number}", text, key=text)


def stdlib_source() -> Source:
    """Return the modules of the running interpreter's standard library, without tests, demos and the IDE.

    Raises:
        DataError: if this interpreter keeps its library elsewhere than in files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = _walk(root, (".py",), _NOT_LIBRARY) if root.is_dir() else ()
    if not files:
        raise DataError(f"the standard library of this Python is not in files at {root}; use data.kind=text and a path")
    return Source(root, files, facts={"python": platform.python_version()})


def files_source(path: Path, column: str) -> Source:
    """Return one file, or all text files below a folder (hidden ones excepted).

    Args:
        path: a ``.txt``, ``.jsonl`` or ``.parquet`` file, or a folder of such.
        column: the field of ``.jsonl`` and ``.parquet`` rows that holds the text.

    Raises:
        DataError: if there is nothing at ``path`` that can be read.
    """
    accepted = ", ".join(SUFFIXES)
    path = path.expanduser()
    facts = {"path": str(path.absolute())}
    if path.is_dir():
        files = _walk(path, SUFFIXES, frozenset())
        if not files:
            raise DataError(f"no file with documents below the folder {path}; accepted: {accepted}")
        return Source(path, files, column, facts)
    if not path.exists():
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise DataError(f"no file or folder {path}" + (f"; did you mean {near!r}?" if near else ""))
    if path.suffix not in SUFFIXES:
        raise DataError(f"cannot read documents from {path}; accepted: {accepted}, or a folder of such files")
    return Source(path.parent, (path.name,), column, facts)


def _walk(root: Path, suffixes: tuple[str, ...], excluded: frozenset[str]) -> tuple[str, ...]:
    """Return the relative paths of all files with one of the suffixes, sorted, hidden names left out."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in excluded and not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith(".") and name.endswith(suffixes))
        found += [path.relative_to(root).as_posix() for path in paths]
    return tuple(sorted(found))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _usable(value: object, skipped: Counter[str]) -> str | None:
    """Return a cell that can be trained on; count and drop any other. ``str(None)`` is never a document."""
    reason = None
    if value is None:
        reason = NULL
    elif not isinstance(value, str):
        reason = NOT_TEXT
    elif not value:
        reason = EMPTY
    else:
        try:
            value.encode()  # half a surrogate pair ("\ud800" in JSON) is a str that is not text
        except UnicodeEncodeError:
            reason = NOT_UTF8
        else:
            return value
    skipped[reason] += 1
    return None


def _file_text(path: Path, skipped: Counter[str]) -> str | None:
    """Read a whole file as one document, newlines untouched; a byte order mark is no text."""
    with _reading(path):
        data = path.read_bytes()
    try:
        return _usable(data.decode("utf-8-sig"), skipped)
    except UnicodeDecodeError:
        skipped[NOT_UTF8] += 1
        return None


def _jsonl_rows(path: Path, column: str, skipped: Counter[str]) -> Iterator[tuple[int, object]]:
    """Yield the line number and the cell of each row; a row without the key is a null."""
    keys: set[str] = set()
    with _reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                skipped[NOT_UTF8] += 1
                continue
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}:{number} must be an object with the key {column!r}, not {json.dumps(row)[:40]}"
                )
            keys |= row.keys()
            yield number, row.get(column)
    if keys and column not in keys:
        raise DataError(f"no column {column!r} in {path}: {suggestion(column, keys)}")


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[int, object]]:
    """Yield the row number, from 0, and the cell of each row."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra(f"reading {path} needs pyarrow; install it with pip install 'perjoule[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise DataError(f"no column {column!r} in {path}: {suggestion(column, names)}")
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield number, value
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} as parquet; is it cut off? ({reason})") from error
