"""One line for each run of a folder: how it stands, when it began, its last loss, joules and time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from perjoule.core.errors import RunFolderError
from perjoule.core.printable import one_line
from perjoule.core.units import duration, si
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import Total
from perjoule.report.what_ran import MISSING
from perjoule.runs.tables import RunSummary, list_runs, load_run

_HEADINGS = ("run", "status", "began", "loss", "energy", "time", "why it ended")


def listed_runs(folder: Path) -> Iterator[str]:
    """Yield a heading and a line for each run folder, oldest first; nothing for a folder without runs.

    Raises:
        RunFolderError: if there is no such folder.
    """
    runs = list_runs(folder)
    rows = [_HEADINGS, *map(_cells, runs)] if runs else []
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)] if rows else []
    for row in rows:
        cells = [
            cell.ljust(width) if number < 3 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row[:-1], widths, strict=True))
        ]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _cells(run: RunSummary) -> tuple[str, ...]:
    """Return what is shown of a run."""
    loss = MISSING if run.loss is None else f"{run.loss:.4f}"
    return (one_line(str(run.path)), run.status, _moment(run.created), loss, *_costs(run.path), one_line(run.reason))


def _moment(created: str) -> str:
    """Return a time of the manifest on the clock of the reader."""
    try:
        return f"{datetime.fromisoformat(created).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return MISSING


def _costs(path: Path) -> tuple[str, str]:
    """Return a run's joules and its time from the first to the last segment's end, without what lay between."""
    try:
        run = load_run(path)
        total = build_ledger(run).total()
    except (RunFolderError, ValueError, KeyError, TypeError):  # a damaged folder hides no other
        return MISSING, MISSING
    seconds = [float(facts["seconds"]) for segment in run.segments if "seconds" in (facts := segment.facts)]
    energy = si(total.energy_uj / 1e6, "J") if isinstance(total, Total) else MISSING
    return energy, duration(sum(seconds)) if seconds else MISSING
