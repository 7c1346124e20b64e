"""A CSV file whose every cell is asked for by name and checked, so that a mistake names its line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perjoule.core.errors import DataError, suggestion


@dataclass(frozen=True)
class Row:
    """One line of a CSV file.

    Args:
        path: the file.
        line: number of the line, from 1.
        cells: text by column.
    """

    path: Path
    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell that must not be empty.

        Raises:
            DataError: if the column is missing or the cell is empty.
        """
        if column not in self.cells:
            raise DataError(f"{self.path}: no column {column!r}: {suggestion(column, self.cells)}")
        value = self.cells[column].strip()
        if not value:
            raise DataError(f"{self.path}, line {self.line}: {column} is empty")
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
            raise DataError(f"{self.path}, line {self.line}: {column} must be above {low:g}{limit}, not {text!r}")
        return value

    def optional(self, column: str, *, low: float = 0.0, high: float = math.inf) -> float | None:
        """Return a number, or None where the cell is empty or the column missing.

        Raises:
            DataError: as :meth:`number`.
        """
        if not self.cells.get(column, "").strip():
            return None
        return self.number(column, low=low, high=high)


def header(path: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file.

    Raises:
        DataError: if it cannot be read or is empty.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not names:
        raise DataError(f"{path} is empty: the first line must name its columns")
    return tuple(name.strip() for name in names)


def rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    """Yield the lines of a CSV file that must have ``columns``.

    Raises:
        DataError: if it cannot be read, lacks a column, or a line is too short or too long.
    """
    names = header(path)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}: {suggestion(missing[0], names)}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        next(reader)
        for cells in reader:
            if len(cells) not in (0, len(names)):
                raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, and {len(names)} columns")
            if cells:
                yield Row(path, reader.line_num, dict(zip(names, cells, strict=True)))
