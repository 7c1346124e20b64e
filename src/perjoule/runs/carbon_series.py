"""``carbon.jsonl``: the carbon intensities that were fetched while a run trained, one line each, failures among them.

The lines of a resumed run follow one another; each carries the wall-clock time at which it was fetched, so that energy
and intensity are joined by time and not by segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.runs.lines import append_line, read_lines

CARBON = "carbon.jsonl"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CarbonSeries:
    """Intensities in the order of time; each is in force until the next one.

    Args:
        t_wall_s: (num_values,) seconds since 1970 at which it was fetched, ascending.
        g_per_kwh: (num_values,) grams of CO2 equivalent per kWh.
        zone: the zone of the last value, "" if there is none.
        kind: what the last value counts.
        num_estimated: how many values the source had estimated and not measured.
        failures: why a value could not be fetched, in order.
    """

    t_wall_s: Floats
    g_per_kwh: Floats
    zone: str = ""
    kind: str = ""
    num_estimated: int = 0
    failures: tuple[str, ...] = ()


def append_intensity(run: Path, line: Mapping[str, Any]) -> None:
    """Append a value or a failure.

    Args:
        run: the run folder.
        line: ``t_wall_s`` with ``g_per_kwh``, ``zone``, ``kind`` and ``estimated``, or with ``unavailable``.

    Raises:
        RunFolderError: if the disk is full or the folder is gone.
    """
    append_line(run / CARBON, line)


def read_carbon_series(run: Path) -> CarbonSeries:
    """Read what was fetched; a run that fetched nothing has an empty series. Damaged lines are skipped.

    Raises:
        RunFolderError: if the file exists and cannot be read.
    """
    values: list[tuple[float, float]] = []
    zone, kind, num_estimated, failures = "", "", 0, []
    for entry in read_lines(run / CARBON):
        if "unavailable" in entry:
            failures.append(str(entry["unavailable"]))
            continue
        try:
            values.append((float(entry["t_wall_s"]), float(entry["g_per_kwh"])))
        except (ValueError, KeyError, TypeError):
            continue
        zone, kind = str(entry.get("zone") or zone), str(entry.get("kind") or kind)
        num_estimated += bool(entry.get("estimated"))
    table = np.array(sorted(values), np.float64).reshape(-1, 2)
    return CarbonSeries(table[:, 0], table[:, 1], zone, kind, num_estimated, tuple(failures))
