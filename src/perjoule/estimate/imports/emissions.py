"""Import CodeCarbon's ``emissions.csv``: kilowatt-hours of GPU, processor and memory of whole runs, kept apart.

The file says nothing of the network or the data. Each line is therefore a workload of its own, named by the project, of
one epoch; estimators that need FLOPs pass it over, those that learn watts of a device can use it.

A run on several equal devices (``8 x NVIDIA A40``, ``gpu_count``) counts as so many equal shares: joules and watts are
those of one, also the joules of processor and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perjoule.core.errors import DataError
from perjoule.core.units import J_PER_KWH
from perjoule.estimate.contract import Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device, parse_devices
from perjoule.estimate.imports.table import Row, Say, check_watts, use_rows
from perjoule.estimate.workloads import Architecture, Workload

COLUMNS = ("run_id", "duration", "cpu_energy", "gpu_energy", "ram_energy", "project_name", "gpu_model", "cpu_model")


def read_emissions(
    path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None
) -> list[Measurement]:
    """Read one measurement per line.

    Args:
        path: the file.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name; a run without a GPU
            needs that of its processor.
        say: is told which lines were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of any device.
        DataError: if no line can be used.
    """
    return use_rows(path, COLUMNS, lambda row: _measurement(row, devices), say)


def _measurement(row: Row, devices: Mapping[str, Device] | None) -> Measurement:
    """Return what a line says."""
    seconds = row.number("duration")
    joules = {scope: _joules(row, f"{scope}_energy") for scope in ("gpu", "cpu", "ram")}
    if joules["gpu"] is None and joules["cpu"] is None:
        raise DataError(f"{row.where}: neither gpu_energy nor cpu_energy is above 0: nothing was measured")
    device, num = _device(row, "gpu" if joules["gpu"] is not None else "cpu", devices)
    each = {scope: None if value is None else value / num for scope, value in joules.items()}
    scopes = Scopes(gpu_j=each["gpu"], cpu_j=each["cpu"], ram_j=each["ram"], pue=row.optional("pue"))
    device_j = scopes.device_j
    assert device_j is not None
    check_watts(row.where, device_j / seconds, device.tdp_w)
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
        num_devices=num,
    )


def _device(row: Row, scope: str, devices: Mapping[str, Device] | None) -> tuple[Device, int]:
    """Return the device of a line and how many of it the joules are of.

    Raises:
        ConfigError: if there is no data sheet.
        DataError: if devices of several kinds share the joules, or the line says two different numbers of them.
    """
    column, text = f"{scope}_model", row.text(f"{scope}_model")
    named = parse_devices(text, devices or ())
    if len(named) > 1:
        raise DataError(f"{row.where}: {column} names several kinds, {text!r}: the joules of each are unknown")
    ((name, num),) = named.items()
    if num < 1:
        raise DataError(f"{row.where}: {column} names {num} devices, {text!r}")
    # cpu_count is the number of cores; that of processors is only in the name.
    counted = row.count("gpu_count") if scope == "gpu" else None
    if counted is not None and num not in (1, counted):
        raise DataError(f"{row.where}: gpu_count is {counted}, and gpu_model says {num}: {text!r}")
    return find_device(name, devices), counted or num


def _joules(row: Row, column: str) -> float | None:
    """Return kilowatt-hours as joules; None where the cell is empty or 0, which is how "not metered" is written."""
    kwh = row.optional(column, low=-1e-12)
    return kwh * J_PER_KWH if kwh else None
