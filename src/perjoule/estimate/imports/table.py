"""A table of foreign origin whose every cell is asked for by name and checked, so that a mistake names its place.

CSV files are read a line at a time: none of the formats has line breaks within cells, so that a quote that is not
closed spoils its own line and no other. Parquet files (as GAISSA names them: ``.gzip``) are told by their first bytes.
A line that cannot be used is left out, counted and named; a file of which nothing can be used is refused.
"""

from __future__ import annotations

import csv
import gzip
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from perjoule.core.errors import ConfigError, DataError, MissingExtra, suggestion

T = TypeVar("T")
Say = Callable[[str], None]
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MOST_NAMED = 3
_FAR_ABOVE = 1.2
"""An average that many times the power limit is no measurement: cards stay within some percent of their limit."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        path: the file.
        line: number of the line (of a Parquet file: of the row), from 1.
        cells: text by column; for a line that could not be parsed only the ``fault``.
        fault: why the line could not be parsed.
    """

    path: Path
    line: int
    cells: Mapping[str, str]
    fault: str = ""

    @property
    def where(self) -> str:
        """Return file and line."""
        return f"{self.path}, line {self.line}"

    def text(self, column: str) -> str:
        """Return a cell that must not be empty.

        Raises:
            DataError: if the column is missing or the cell is empty.
        """
        if column not in self.cells:
            raise DataError(f"{self.path}: no column {column!r}: {suggestion(column, self.cells)}")
        value = self.cells[column].strip()
        if not value:
            raise DataError(f"{self.where}: {column} is empty")
        return value

    def number(self, column: str, *, low: float = 0.0, high: float = math.inf) -> float:
        """Return a number that must be above ``low`` and at most ``high``.

        Raises:
            DataError: if it is missing, no number, or outside the range.
        """
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value <= high or math.isinf(value):
            limit = f" and at most {high:g}" if high < math.inf else ""
            raise DataError(f"{self.where}: {column} must be above {low:g}{limit}, not {text!r}")
        return value

    def optional(self, column: str, *, low: float = 0.0, high: float = math.inf) -> float | None:
        """Return a number, or None where the cell is empty or the column missing.

        Raises:
            DataError: as :meth:`number`.
        """
        if not self.cells.get(column, "").strip():
            return None
        return self.number(column, low=low, high=high)

    def count(self, column: str) -> int | None:
        """Return a whole number from 1, or None where the cell is empty or the column missing.

        Raises:
            DataError: if it is none.
        """
        value = self.optional(column)
        if value is not None and value != int(value):
            raise DataError(f"{self.where}: {column} must be a whole number, not {value:g}")
        return None if value is None else int(value)


def check_watts(where: str, watts: float, limit_w: float) -> None:
    """Refuse a mean power that a device cannot have drawn.

    Args:
        where: file and line.
        watts: mean over the measurement.
        limit_w: power limit.

    Raises:
        DataError: if it is far above the limit.
    """
    if watts > _FAR_ABOVE * limit_w:
        raise DataError(
            f"{where}: {watts:.4g} W on average is {watts / limit_w:.3g} times the limit of {limit_w:g} W: both must "
            "be in watts and of one device"
        )


@dataclass
class LeftOut:
    """The rows of a file that could not be used.

    Args:
        reasons: one for each of them.
    """

    reasons: list[str] = field(default_factory=list)

    def use(self, path: Path, rows: Iterable[Row], read: Callable[[Row], T], say: Say | None) -> list[T]:
        """Return what ``read`` makes of each row that can be used.

        Args:
            path: of the file.
            rows: of the file.
            read: raises for a row that cannot be used.
            say: is told how many were left out and which; None: the log.

        Raises:
            ConfigError: if none can be used, for want of a data sheet.
            DataError: if none can be used.
        """
        found: list[T] = []
        for row in rows:
            try:
                if row.fault:
                    raise DataError(f"{row.where}: {row.fault}")
                found.append(read(row))
            except (ConfigError, DataError) as error:
                if not found and not self.reasons:
                    first = error
                self.reasons.append(str(error))
        if self.reasons and not found:
            more = f" ({len(self.reasons)} rows, none of which can be used)" if len(self.reasons) > 1 else ""
            raise type(first)(f"{first}{more}") from first
        self.tell(path, len(found), say)
        return found

    def tell(self, path: Path, used: int, say: Say | None) -> None:
        """Say which rows were left out."""
        if not self.reasons:
            return
        named = [reason.removeprefix(f"{path}, ").removeprefix(f"{path}: ") for reason in self.reasons[:_MOST_NAMED]]
        rest = len(self.reasons) - len(named)
        text = f"{path}: {len(self.reasons)} of {used + len(self.reasons)} rows left out: {'; '.join(named)}"
        (say or logging.getLogger(__name__).warning)(text + (f"; and {rest} more" if rest else ""))


def use_rows(
    path: Path, columns: Iterable[str], read: Callable[[Row], T], say: Say | None, optional: bool = False
) -> list[T]:
    """Return what ``read`` makes of each usable row of a file; see :meth:`LeftOut.use`.

    Args:
        path: the file.
        columns: that it must have.
        read: raises for a row that cannot be used.
        say: is told what was left out; None: the log.
        optional: whether a file without rows is accepted.

    Raises:
        ConfigError: as :meth:`LeftOut.use`.
        DataError: also if the file cannot be read, lacks a column or has no rows.
    """
    found = LeftOut().use(path, rows(path, columns), read, say)
    if not found and not optional:
        raise DataError(f"{path} has its columns and no row")
    return found


def header(path: Path) -> tuple[str, ...]:
    """Return the column names of a table.

    Raises:
        DataError: if it cannot be read or is empty.
    """
    if is_parquet(path):
        return tuple(_parquet(path).schema.names)
    return _names(path, _lines(path))


def rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    """Yield the lines of a table that must have ``columns``; those that cannot be parsed with their ``fault``.

    Raises:
        DataError: if it cannot be read or lacks a column.
    """
    parquet = is_parquet(path)
    lines = [] if parquet else _lines(path)
    names = header(path) if parquet else _names(path, lines)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}: {suggestion(missing[0], names)}")
    if parquet:
        for number, cells in enumerate(_parquet(path).to_pylist(), 1):
            yield Row(path, number, {name: _text(value) for name, value in cells.items()})
        return
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except (csv.Error, StopIteration) as error:
            yield Row(path, number, {}, f"a quote is not closed, or the line is no CSV ({error})")
            continue
        if len(cells) != len(names):
            yield Row(path, number, {}, f"{len(cells)} cells, and {len(names)} columns")
        else:
            yield Row(path, number, dict(zip(names, cells, strict=True)))


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its first bytes.

    Raises:
        DataError: if it cannot be read.
    """
    return _bytes(path, 4) == _PARQUET


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Return columns of a Parquet file as arrays, for files of a million rows.

    Raises:
        DataError: if it cannot be read or lacks a column.
    """
    table = _parquet(path)
    for name in columns:
        if name not in table.schema.names:
            raise DataError(f"{path}: no column {name!r}: {suggestion(name, table.schema.names)}")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in columns}


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _parquet(path: Path) -> Any:
    """Return the table of a Parquet file.

    Raises:
        MissingExtra: if pyarrow is not installed.
        DataError: if it cannot be read.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra(f"{path} is Parquet: reading it needs pip install 'perjoule[data]'") from error
    try:
        return parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _bytes(path: Path, num: int = -1) -> bytes:
    """Return the first bytes of a regular file; of a pipe nothing would ever come.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"cannot read {path}: it is no regular file")
        with path.open("rb") as file:
            return file.read(num)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file: UTF-8 with or without its mark, UTF-16 with its own, or either in gzip.

    Raises:
        DataError: if it cannot be read or is in another encoding.
    """
    content = _bytes(path)
    try:
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
        return [line.rstrip("\r") for line in content.decode(encoding).split("\n")]
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def _names(path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """Return the column names in the first line.

    Raises:
        DataError: if there are none, or one is there twice.
    """
    try:
        names = [name.strip() for name in next(csv.reader(lines[:1], strict=True), [])]
    except csv.Error as error:
        raise DataError(f"{path}, line 1: the names of the columns cannot be read: {error}") from error
    if not names:
        raise DataError(f"{path} is empty: the first line must name its columns")
    twice = next((name for name in names if names.count(name) > 1 and name), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice!r}")
    return tuple(names)
