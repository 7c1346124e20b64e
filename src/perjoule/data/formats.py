"""How documents lie in files: parquet, JSON lines (plain or compressed), text.

What cannot be trained on (a null cell, an empty one, bytes, text that is not UTF-8) is counted by reason and skipped;
what makes the rest doubtful (a broken line, a cut-off file, a column of numbers among columns of text) is an error.
Every reader streams: memory does not grow with the file, only with its longest document.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any, cast

from pydantic import Field, PositiveInt

from perjoule.config import Config
from perjoule.core.errors import DataError, MissingExtra, suggestion
from perjoule.core.files import NotText, decode, encoding_mark
from perjoule.core.limits import available_bytes
from perjoule.core.units import byte_size

NULL, EMPTY, BLANK, NOT_TEXT, NOT_UTF8 = "null", "empty", "blank", "not_text", "not_utf8"
"""Why a document was skipped."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ACCEPTED = ".txt, .text, .jsonl, .ndjson (all also .gz, .bz2, .xz or .zst), .json.gz (JSON lines as well), .parquet"

_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 20
_HARMLESS_BYTES = 64 << 20
"""What any file may grow to, however well it was compressed."""
_LONGEST_LINE_BYTES = 512 << 20
_MEMORY_FACTOR = 6
"""A document is in memory as bytes, as text of up to four bytes a character, and once more while it is encoded."""


class Kind(Enum):
    """What a file holds."""

    TEXT = "text"
    JSON_LINES = "json lines"
    PARQUET = "parquet"


class Limits(Config):
    """How far a compressed file may grow before it is refused: a bomb of 1 MB can hold 1 TB of nothing."""

    max_bytes: PositiveInt = 1 << 38
    """Of one file when decompressed."""
    max_ratio: float = Field(default=250.0, ge=1)
    """Decompressed to compressed size, for what decompresses to more than 64 MiB; text is at 3 to 10."""


DEFAULT_LIMITS = Limits()


def kind_of(name: str) -> Kind | None:
    """Return what a file with this name holds; None if it holds no documents."""
    plain = uncompressed_name(name).lower()
    if plain.endswith((".txt", ".text")):
        return Kind.TEXT
    if plain.endswith((".jsonl", ".ndjson")) or (is_compressed(name) and plain.endswith(".json")):
        return Kind.JSON_LINES  # a lone .json is one object, not rows
    return Kind.PARQUET if name.lower().endswith(".parquet") else None


def is_compressed(name: str) -> bool:
    """Return whether a file must be decompressed as a whole."""
    return name.lower().endswith(COMPRESSIONS)


def uncompressed_name(name: str) -> str:
    """Return a file's name without the suffix of its compression."""
    return name[: name.rindex(".")] if is_compressed(name) else name


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file could not be read.

    Raises:
        DataError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def usable(value: object, skipped: Counter[str]) -> str | None:
    """Return a cell that can be trained on; count and drop any other. ``str(None)`` is never a document."""
    if isinstance(value, str):
        if not value:
            reason = EMPTY
        elif value.isspace():
            reason = BLANK
        elif value.isascii():
            return value
        else:
            try:
                value.encode()  # half a surrogate pair ("\ud800" in JSON) is a str that is not text
            except UnicodeEncodeError:
                reason = NOT_UTF8
            else:
                return value
    elif isinstance(value, _NotUtf8):
        reason = NOT_UTF8
    else:
        reason = NULL if value is None else NOT_TEXT
    skipped[reason] += 1
    return None


def file_text(path: Path, limits: Limits, skipped: Counter[str]) -> str | None:
    """Read a whole file as one document, newlines untouched; a byte order mark is no text, but says how to read it.

    A file with NUL bytes is counted as ``not_text``, one that is not in its encoding as ``not_utf8``.

    Raises:
        DataError: if the file cannot be read, is damaged, is beyond the limits, or does not fit into memory.
    """
    with reading(path), _open(path, limits) as file:
        most = available_bytes() // _MEMORY_FACTOR
        chunks, left = [], most
        while left >= 0 and (chunk := file.read(_CHUNK_BYTES)):
            chunks.append(chunk)
            left -= len(chunk)
        if left < 0:
            raise DataError(
                f"{path} is one document of more than {byte_size(most)}, which does not fit into memory; split the "
                "file, or make its parts lines of .jsonl"
            )
        data = b"".join(chunks)
    try:
        return usable(decode(data), skipped)
    except NotText:
        skipped[NOT_TEXT if b"\0" in data else NOT_UTF8] += 1
        return None


def json_rows(path: Path, column: str, begin: int, end: int | None, limits: Limits) -> Iterator[tuple[int, object]]:
    """Yield the number and the cell of each line that begins in a range of bytes; a row without the key is a null.

    Args:
        path: the file; only an uncompressed one can be entered in its middle.
        column: the key.
        begin: first byte of the range. Lines are numbered from 1 at the first line of the range.
        end: the byte behind the range; None: to the end of the file.
        limits: of a compressed file.

    Raises:
        DataError: for a line that is no JSON object, a key that no row has, or a file that cannot be read.
    """
    keys: set[str] = set()
    with reading(path), _open(path, limits) as file:
        position = begin
        if begin:
            file.seek(begin - 1)
            position += len(file.readline()) - 1  # of the line that began before the range
        for number, line in enumerate(_lines(file, path), start=1):
            if end is not None and position >= end:
                break
            if position == 0 and (mark := encoding_mark(line[:4])) and mark[1] != "utf-8":
                raise DataError(f"{path} is {mark[1].upper()}, JSON lines are UTF-8: convert it (iconv -f {mark[1]})")
            position += len(line)
            if not line.strip():
                continue
            try:
                row = _row(line.decode("utf-8-sig"), column)
            except UnicodeDecodeError:
                yield number, _NotUtf8()
                continue
            except (ValueError, RecursionError) as error:
                place = f"{path}:{_line_number(path, begin, number)}"
                reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(f"{place} cannot be read as a row: {reason}") from error
            if column not in keys:
                keys |= row.keys()
            yield number, row.get(column)
    if begin == 0 and keys and column not in keys:  # further on in a large file, a stretch without it is no mistake
        raise DataError(f"no column {column!r} in {path}: {suggestion(column, keys)}")


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield lines, none of them longer than memory holds: a file of one endless line is no file of rows.

    Raises:
        DataError: naming the line.
    """
    longest = max(_HARMLESS_BYTES, min(_LONGEST_LINE_BYTES, available_bytes() // _MEMORY_FACTOR))
    for number, line in enumerate(iter(lambda: file.readline(longest), b""), start=1):
        if len(line) == longest and not line.endswith(b"\n"):
            raise DataError(f"{path}: line {number} has more than {byte_size(longest)}; is it a file of rows?")
        yield line


def _row(line: str, column: str) -> dict[str, Any]:
    """Read a line of JSON as an object that has a key once at most.

    Raises:
        ValueError: if it is none.
        RecursionError: if it is nested too deeply.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object with the key {column!r}, not {json.dumps(row)[:40]}")
    if line.count(json.dumps(column)) > 1:  # mostly in a text; counting is a hundred times faster than asking
        pairs: list[list[tuple[str, object]]] = []
        json.loads(line, object_pairs_hook=pairs.append)
        if [key for key, _ in pairs[-1]].count(column) > 1:
            raise ValueError(f"the key {column!r} stands in it twice")
    return row


@dataclass(frozen=True)
class RowGroups:
    """What the footer of a parquet file says.

    Args:
        column_type: of the column, in Arrow's words.
        is_text: whether the column holds strings.
        num_bytes: of the column in each row group, decompressed but with a dictionary still in place.
    """

    column_type: str
    is_text: bool
    num_bytes: tuple[int, ...]


def row_groups(path: Path, column: str) -> RowGroups:
    """Read the footer of a parquet file.

    Raises:
        DataError: if the file is damaged or has no such column.
        MissingExtra: without pyarrow.
    """
    with _parquet(path, column) as file:
        position = file.schema_arrow.get_field_index(column)
        kind = file.schema_arrow.field(position).type
        # A nested column has several leaves. Its cells are no text, so its size is of no interest.
        leaf = next((i for i in range(len(file.schema)) if file.schema.column(i).path == column), None)
        groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
        sizes = (group.column(leaf).total_uncompressed_size if leaf is not None else 0 for group in groups)
        return RowGroups(str(kind), _is_text(kind), tuple(sizes))


def parquet_rows(path: Path, column: str, begin: int, end: int | None) -> Iterator[tuple[int, object]]:
    """Yield the number, from 0 in the file, and the cell of each row in a range of row groups.

    Raises:
        DataError: if the file is damaged or has no such column.
        MissingExtra: without pyarrow.
    """
    with _parquet(path, column) as file:
        meta = file.metadata
        end = meta.num_row_groups if end is None else end
        number = sum(meta.row_group(group).num_rows for group in range(begin))
        for group in range(begin, end):
            rows = meta.row_group(group).num_rows
            size = max(meta.row_group(group).total_byte_size, 1)
            at_once = max(1, min(rows, rows * _BATCH_BYTES // size, 8192))
            for batch in file.iter_batches(at_once, [group], [column], use_threads=False):
                for value in _cells(batch.column(0)):
                    yield number, value
                    number += 1


class _NotUtf8:
    """Stands for a cell whose bytes are no text."""


def _cells(column: Any) -> list[object]:
    """Return the cells of an Arrow array as Python objects."""
    try:
        return cast(list[object], column.to_pylist())
    except UnicodeDecodeError:  # parquet does not check what it calls a string
        return [_cell(value) for value in column]


def _cell(value: Any) -> object:
    """Return one cell, or the sign that it is no text."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NotUtf8()


def _is_text(kind: Any) -> bool:
    """Return whether an Arrow type holds strings."""
    from pyarrow import types  # type: ignore[import-untyped]

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


@contextmanager
def _parquet(path: Path, column: str) -> Iterator[Any]:
    """Open a parquet file that has the column."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra(f"reading {path} needs pyarrow; install it with pip install 'perjoule[data]'") from error
    try:
        # Arrow reads a column chunk ahead and keeps what its threads had: with neither, a third less memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise DataError(f"no column {column!r} in {path}: {suggestion(column, names)}")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} as parquet; is it cut off? ({reason})") from error


def _line_number(path: Path, begin: int, number: int) -> int:
    """Return which line of the file is the ``number``-th of those that begin at byte ``begin`` or later."""
    if begin == 0:
        return number
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(min(_BUFFER_BYTES, begin - 1 - file.tell())), b"")
        return 1 + sum(chunk.count(b"\n") for chunk in chunks) + number


def _open(path: Path, limits: Limits) -> IO[bytes]:
    """Open a file for reading, through its decompressor if it has one."""
    if not is_compressed(path.name):
        return path.open("rb")
    return io.BufferedReader(_Decompressed(path, limits), _BUFFER_BYTES)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file, within limits.

    Raises:
        MissingExtra: for zstd without pyarrow.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._inner: Any = io.BytesIO()  # closed if the next lines fail
        self._allowed = min(limits.max_bytes, max(_HARMLESS_BYTES, int(limits.max_ratio * path.stat().st_size)))
        self._num_bytes = 0
        self._inner = _decompressor(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end.

        Raises:
            DataError: for a damaged file, or one that grows beyond the limits.
        """
        try:
            count = int(self._inner.readinto(buffer))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:  # as the libraries have it
            reason = str(error).splitlines()[0]
            raise DataError(f"cannot decompress {self._path}; is it cut off or damaged? ({reason})") from error
        self._num_bytes += count
        if self._num_bytes > self._allowed:
            raise DataError(
                f"{self._path} decompresses to more than {byte_size(self._allowed)}, which is unusual; if the file is "
                f"right, raise limits.max_bytes ({self._limits.max_bytes}) or limits.max_ratio "
                f"({self._limits.max_ratio:g})"
            )
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


def _decompressor(path: Path) -> Any:
    """Open a compressed file with the library of its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".bz2":
        return bz2.open(path)
    if suffix == ".xz":
        return lzma.open(path)
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra(f"reading {path} needs pyarrow; install it with pip install 'perjoule[data]'") from error
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
