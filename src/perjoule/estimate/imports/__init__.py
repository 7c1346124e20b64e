"""Measurements of others and our own, brought into one form: one file per format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement
from perjoule.estimate.devices import Device
from perjoule.estimate.imports import emissions, gaissa, gaissa_raw, gaissa_trail, zeus
from perjoule.estimate.imports.table import Say, header

_Read = Callable[[Path, Mapping[str, Device] | None, Say | None], list[Measurement]]
_FORMATS: tuple[tuple[str, tuple[str, ...], _Read], ...] = (
    ("the GAISSA table", gaissa.COLUMNS, gaissa.read_gaissa),
    ("GAISSA's runs", gaissa_trail.PROCESSED_COLUMNS, gaissa_trail.read_processed),
    ("GAISSA's epochs", gaissa_trail.EPOCH_COLUMNS, gaissa_trail.read_epochs),
    ("GAISSA's samples", gaissa_raw.PROFILE_COLUMNS, gaissa_raw.read_profile),
    ("a Zeus trace", zeus.COLUMNS, zeus.read_zeus),
    ("CodeCarbon's emissions.csv", emissions.COLUMNS, emissions.read_emissions),
)


def read_measurements(
    paths: Iterable[Path], devices: Mapping[str, Device] | None = None, say: Say | None = None
) -> list[Measurement]:
    """Read files of any known format, told by their columns, run folders, and GAISSA's folders of samples.

    Args:
        paths: files and folders.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
        say: is told which rows were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of any device of a file.
        DataError: if a file is of no known format or nothing in it can be used.
        RunFolderError: if a folder is no run.
    """
    found: list[Measurement] = []
    for path in paths:
        found += _read(path, devices, say)
    return found


def _read(path: Path, devices: Mapping[str, Device] | None, say: Say | None) -> list[Measurement]:
    """Read one file or folder."""
    if path.is_dir():
        from perjoule.estimate.imports.runs import read_run
        from perjoule.runs.folder import MANIFEST

        if not (path / MANIFEST).exists() and (files := gaissa_raw.find_raw(path)):
            return gaissa_raw.read_raw(files, devices, say)
        return [read_run(path, devices)]
    columns = set(header(path))
    if path.name.startswith("gpu-power-"):
        return gaissa_raw.read_raw([path], devices, say)
    # More than half of the columns: a file that lacks one is told which, not that it is unknown.
    alike = [(len(columns & set(known)) / len(known), read) for _, known, read in _FORMATS]
    share, read = max(alike, key=lambda one: one[0])
    if share > 0.5:
        return read(path, devices, say)
    formats = "; ".join(f"{name} ({', '.join(known[:3])} …)" for name, known, _ in _FORMATS)
    raise DataError(
        f"{path}: no known format. Accepted, with columns between commas: {formats}; a run folder, and GAISSA's raw "
        "folder of gpu-power-*.csv"
    )
