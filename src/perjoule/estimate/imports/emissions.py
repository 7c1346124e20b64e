"""Import CodeCarbon's ``emissions.csv``: kilowatt-hours of GPU, processor and memory of whole runs, kept apart.

The file says nothing of the network or the data. Each line is therefore a workload of its own, named by the project, of
one epoch; estimators that need FLOPs pass it over, those that learn watts of a device can use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from perjoule.core.errors import DataError
from perjoule.core.units import J_PER_KWH
from perjoule.estimate.contract import Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.imports.table import Row, rows
from perjoule.estimate.workloads import Architecture, Workload

COLUMNS = ("run_id", "duration", "cpu_energy", "gpu_energy", "ram_energy", "project_name", "gpu_model", "cpu_model")


def read_emissions(path: Path, devices: Mapping[str, Device] | None = None) -> list[Measurement]:
    """Read one measurement per line.

    Args:
        path: the file.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name; a run without a GPU
            needs that of its processor.

    Raises:
        ConfigError: if there is no data sheet of the device.
        DataError: if a line cannot be used.
    """
    return [_measurement(row, devices) for row in rows(path, COLUMNS)]


def _measurement(row: Row, devices: Mapping[str, Device] | None) -> Measurement:
    """Return what a line says."""
    seconds = row.number("duration")
    scopes = Scopes(
        gpu_j=_joules(row, "gpu_energy"),
        cpu_j=_joules(row, "cpu_energy"),
        ram_j=_joules(row, "ram_energy"),
        pue=row.optional("pue"),
    )
    device_j = scopes.device_j
    if device_j is None:
        raise DataError(
            f"{row.path}, line {row.line}: neither gpu_energy nor cpu_energy is above 0: nothing was measured"
        )
    column = "gpu_model" if scopes.gpu_j is not None else "cpu_model"
    # "1 x NVIDIA A40": the number of devices stands before the name.
    device = find_device(re.sub(r"^\s*\d+\s*x\s*", "", row.text(column)), devices)
    name = row.text("project_name")
    return Measurement(
        Job(device, Workload(Architecture(name, 0.0, 0.0, 0.0, 1, 1.0), name, 1.0, 1.0), 1, epochs=1),
        scopes,
        seconds_per_epoch=seconds,
        watts=device_j / seconds,
        total_s=seconds,
        total_j=device_j,
        replicate=row.text("run_id"),
        source=row.path.name,
        study="CodeCarbon",
    )


def _joules(row: Row, column: str) -> float | None:
    """Return kilowatt-hours as joules; None where the cell is empty or 0, which is how "not metered" is written."""
    kwh = row.optional(column, low=-1e-12)
    return kwh * J_PER_KWH if kwh else None
