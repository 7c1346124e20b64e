"""The rows of a small CSV file that somebody else wrote: a quote that is not closed spoils no other row unnoticed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from perjoule.core.errors import suggestion


def csv_rows(text: str, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of its last line, cells by column) of every row that is not empty.

    Args:
        text: of the file; its first row names the columns.
        columns: that must be there.

    Raises:
        ValueError: with the line, if a column is missing, or a row has a stray or open quote, or more or fewer cells
            than there are columns.
    """
    begin = 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        for column in columns:
            if column not in names:
                there = suggestion(column, names) if any(names) else "it is empty"
                raise ValueError(f"no column {column!r}: {there}")
        begin = reader.line_num + 1
        for cells in reader:
            if len(cells) not in (0, len(names)):
                quoted = f", with a quote that is open since line {begin}" if begin < reader.line_num else ""
                raise ValueError(f"line {reader.line_num}: {len(cells)} cells, and {len(names)} columns{quoted}")
            if cells:
                yield reader.line_num, dict(zip(names, cells, strict=True))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}; the row begins in line {begin}") from error
