"""Measurements of others and our own, brought into one form: one file per format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement
from perjoule.estimate.devices import Device
from perjoule.estimate.imports import emissions, gaissa, zeus
from perjoule.estimate.imports.table import header


def read_measurements(paths: Iterable[Path], devices: Mapping[str, Device] | None = None) -> list[Measurement]:
    """Read files of any known format, told by their columns, and run folders.

    Args:
        paths: ``summary_power_*.csv`` of Zeus, the GAISSA table, CodeCarbon's ``emissions.csv``, run folders.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.

    Raises:
        ConfigError: if there is no data sheet of a device.
        DataError: if a file is of no known format or cannot be used.
        RunFolderError: if a folder is no run.
    """
    found: list[Measurement] = []
    for path in paths:
        found += _read(path, devices)
    return found


def _read(path: Path, devices: Mapping[str, Device] | None) -> list[Measurement]:
    """Read one file or folder."""
    if path.is_dir():
        from perjoule.estimate.imports.runs import read_run

        return [read_run(path, devices)]
    columns = set(header(path))
    for known, read in (
        (gaissa.COLUMNS, gaissa.read_gaissa),
        (zeus.COLUMNS, zeus.read_zeus),
        (emissions.COLUMNS, emissions.read_emissions),
    ):
        # More than half of the columns: a file that lacks one is told which, not that it is unknown.
        if len(columns & set(known)) * 2 > len(known):
            return read(path, devices)
    raise DataError(
        f"{path}: no known format. Accepted: a run folder, the GAISSA table ({', '.join(gaissa.COLUMNS[:3])} …), "
        f"a Zeus trace ({', '.join(zeus.COLUMNS[:3])} …), "
        f"CodeCarbon's emissions.csv ({', '.join(emissions.COLUMNS[:3])} …)"
    )
