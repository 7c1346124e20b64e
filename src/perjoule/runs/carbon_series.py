"""``carbon.jsonl``: the carbon intensities that were fetched while a run trained, one line each, failures among them.

The lines of a resumed run follow one another; each carries the wall-clock time at which it was fetched, so that energy
and intensity are joined by time and not by segment.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError

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


def append_intensity(run: Path, line: dict[str, Any]) -> None:
    """Append one line in one system call; a line that a kill cut off before stays by itself.

    Args:
        run: the run folder.
        line: ``t_wall_s`` with ``g_per_kwh``, ``zone``, ``kind`` and ``estimated``, or with ``unavailable``.

    Raises:
        RunFolderError: if the disk is full or the folder is gone.
    """
    path = run / CARBON
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + json.dumps(line, allow_nan=False) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def read_carbon_series(run: Path) -> CarbonSeries:
    """Read what was fetched; a run that fetched nothing has an empty series. Damaged lines are skipped.

    Raises:
        RunFolderError: if the file exists and cannot be read.
    """
    path = run / CARBON
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    values: list[tuple[float, float]] = []
    zone, kind, num_estimated, failures = "", "", 0, []
    for line in lines:
        try:
            entry = json.loads(line)
            if "unavailable" in entry:
                failures.append(str(entry["unavailable"]))
                continue
            values.append((float(entry["t_wall_s"]), float(entry["g_per_kwh"])))
        except (ValueError, KeyError, TypeError):
            continue
        zone, kind = str(entry.get("zone") or zone), str(entry.get("kind") or kind)
        num_estimated += bool(entry.get("estimated"))
    table = np.array(sorted(values), np.float64).reshape(-1, 2)
    return CarbonSeries(table[:, 0], table[:, 1], zone, kind, num_estimated, tuple(failures))
