"""Import the power traces of Zeus: workload, batch and power limit to seconds per epoch and mean watts of one GPU.

The files name data sets and not how many samples an epoch has. Those of public data sets are facts; where the authors'
preparation is not published the figure is inferred from the time of an epoch, and marked so. A wrong one moves all
devices alike and is absorbed by the workload's own factor as soon as one row of that workload has been seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from perjoule.core.errors import DataError, suggestion
from perjoule.estimate.contract import Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.imports.table import Row, Say, check_watts, use_rows
from perjoule.estimate.workloads import Workload, find_architecture

COLUMNS = ("dataset", "network", "batch_size", "optimizer", "power_limit", "time_per_epoch", "average_power")


class _Data(NamedTuple):
    """Samples per epoch and the size of one."""

    train_samples: float
    sample_size: float


_DATA: Mapping[str, _Data] = {
    "cifar100": _Data(50_000, 32),
    "imagenet": _Data(1_281_167, 224),
    "librispeech": _Data(132_553, 615),  # the 460 clean hours, 12.3 s on average: inferred
    "movielens-1m": _Data(4_970_845, 1),  # 994,169 ratings with four negatives each
    "squad": _Data(88_524, 384),
    "sentiment140": _Data(1_280_000, 64),  # four fifths, cut to 64 tokens: inferred
}


def read_zeus(path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None) -> list[Measurement]:
    """Read ``summary_power_<device>.csv``; the file's name says which device.

    Args:
        path: the file.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
        say: is told which lines were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of the device.
        DataError: if the file's name has no device, or a line cannot be used.
    """
    found = re.fullmatch(r"summary_power_(.+)", path.stem)
    if found is None:
        raise DataError(f"{path}: a Zeus trace says its device in its name: summary_power_v100.csv")
    device = find_device(found[1], devices)
    return use_rows(path, COLUMNS, lambda row: _measurement(row, device), say)


def _measurement(row: Row, device: Device) -> Measurement:
    """Return what a line says."""
    dataset = row.text("dataset")
    if dataset not in _DATA:
        raise DataError(f"{row.where}: unknown dataset {dataset!r}: {suggestion(dataset, _DATA)}")
    workload = Workload(
        find_architecture(row.text("network"), row.where),
        dataset,
        _DATA[dataset].sample_size,
        _DATA[dataset].train_samples,
        optimizer=row.text("optimizer"),
    )
    limit_w, watts = row.number("power_limit"), row.number("average_power")
    check_watts(row.where, watts, limit_w)
    seconds = row.number("time_per_epoch")
    job = Job(device, workload, int(row.number("batch_size")), power_limit_w=limit_w, host=f"zeus {device.name}")
    return Measurement(job, Scopes(gpu_j=seconds * watts), seconds, watts, source=row.path.name, study="Zeus")
