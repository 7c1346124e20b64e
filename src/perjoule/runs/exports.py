"""The tables that are written into a run folder for other programs, and how: whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from perjoule.runs.files import write_atomically

EMISSIONS, EMISSIONS_STEPS, EMISSIONS_PHASES = "emissions.csv", "emissions_steps.csv", "emissions_phases.csv"
ENERGY = "energy.csv"
Cell = str | int | float | None


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Path:
    """Write a table, atomically; a cell that is None stays empty. Return ``path``.

    Raises:
        RunFolderError: if the disk is full or the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
    return path
