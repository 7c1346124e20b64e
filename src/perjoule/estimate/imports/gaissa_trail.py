"""Import the files that the GAISSA studies write themselves, from the raw samples to the table of runs.

===========================================  ====================================================================
``raw/ENV/ARCH[/DATA]/gpu-power-TIME.csv``   samples of nvidia-smi; with ``cpu-mem-usage-TIME.csv`` and, from 2024,
                                             ``epoch_end-TIME.csv`` beside it (``gaissa_raw.py``)
``interim/dl-training-profiling-dataset``    the samples of all runs (also there)
``interim/dl-epoch-energy-consumption-…``    seconds and kilojoules of every epoch of every run
``processed/dl-training-energy-consumpt…``   one row per run
===========================================  ====================================================================

The last three are Parquet whose name ends in ``.gzip``; the same as CSV is read too. Energy of the GPU and of the
modelled RAM are columns of their own, or only the GPU's is there (2023). The number of epochs of 2023 disagrees with
the reprocessing of 2024, so that of such rows only totals are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Epoch, Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.imports.gaissa import STUDY, UNINFORMATIVE, gaissa_job
from perjoule.estimate.imports.table import LeftOut, Row, Say, check_watts, rows, use_rows

PROCESSED_COLUMNS = ("training environment", "architecture", "training duration (h)", "gpu model", "batch size")
EPOCH_COLUMNS = (
    "training environment",
    "architecture",
    "dataset",
    "run_id",
    "epoch",
    "duration (s)",
    "gpu energy (kJ)",
    "batch size",
    "image size",
)
ENVIRONMENTS: Mapping[str, str] = {"local": "Local Normal User", "local-v2": "Local ML Engineer", "cloud": "Cloud"}
_GPUS = {"Local Normal User": "GTX 750 Ti", "Local ML Engineer": "RTX 3070", "Cloud": "RTX 3090"}
CHESS = "chesslive-occupancy"
CHESS_PX = 128.0
_S_PER_H, _J_PER_MJ, _J_PER_KJ = 3600.0, 1e6, 1e3


def read_processed(
    path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None
) -> list[Measurement]:
    """Read the table of runs of either study.

    Args:
        path: the file.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
        say: is told which rows were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of any device.
        DataError: if no row can be used.
    """
    return use_rows(path, PROCESSED_COLUMNS, lambda row: _run(row, devices), say)


def _run(row: Row, devices: Mapping[str, Device] | None) -> Measurement:
    """Return what a row says of a run."""
    if row.optional("return code", low=-np.inf):
        raise DataError(f"{row.where}: the run ended with code {row.text('return code')}, as one without memory does")
    seconds = row.number("training duration (h)") * _S_PER_H
    watts = row.number("average gpu power (W)" if "average gpu power (W)" in row.cells else "average power draw (W)")
    of_2024 = "gpu energy (MJ)" in row.cells
    joules = row.number("gpu energy (MJ)" if of_2024 else "energy (MJ)") * _J_PER_MJ
    ram_mj = row.optional("ram energy (MJ)", low=-1e-12)
    device = find_device(row.text("gpu model"), devices)
    job = gaissa_job(
        device,
        environment=environment(row.text("training environment")),
        architecture=row.text("architecture"),
        dataset=row.text("dataset") if "dataset" in row.cells else CHESS,
        batch_size=row.count("batch size") or 0,
        image_px=image_px(row) if "image size" in row.cells else CHESS_PX,
        limit_w=row.optional("max power limit (W)"),
        samples=(row.optional("training size"), row.optional("validation size")),
        forward_gflops=row.optional("GFLOPs"),
        ram_gb=row.optional("total ram (GB)"),
        where=row.where,
    )
    check_watts(row.where, watts, job.limit_w)
    epochs = row.count("measured epochs") if of_2024 else None
    return Measurement(
        job,
        Scopes() if epochs is None else Scopes(joules / epochs, ram_j=ram_mj and ram_mj * _J_PER_MJ / epochs),
        seconds_per_epoch=None if epochs is None else seconds / epochs,
        watts=watts,
        total_s=seconds,
        total_j=joules,
        utilization=None if (use := row.optional("gpu usage (%)", high=100.0)) is None else use / 100,
        replicate=row.text("run_id" if "run_id" in row.cells else "run"),
        source=f"{row.path.name} processed",
        study=STUDY,
        trusted=device.name not in UNINFORMATIVE,
    )


def image_px(row: Row) -> float:
    """Return the side of images from ``(128,128)`` or ``128``.

    Raises:
        DataError: if it is neither.
    """
    text = row.text("image size")
    try:
        return float(text.strip("()[] ").split(",")[0])
    except ValueError:
        raise DataError(f"{row.where}: image size must be such as (128,128), not {text!r}") from None


def environment(name: str) -> str:
    """Return the long name of an environment, by which its host is told; ``Local ML Engineer/Gamer`` is one of 2023."""
    return ENVIRONMENTS.get(name, name.split("/", maxsplit=1)[0])


def read_epochs(path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None) -> list[Measurement]:
    """Read the table of epochs: one measurement per run, with its epochs.

    It names the environment and not the GPU; each environment of the studies has one.

    Args:
        path: the file.
        devices: as :func:`read_processed`.
        say: as :func:`read_processed`.

    Raises:
        ConfigError: as :func:`read_processed`.
        DataError: as :func:`read_processed`.
    """
    runs: dict[tuple[str, ...], list[Row]] = {}
    left_out = LeftOut()
    for row in rows(path, EPOCH_COLUMNS):
        key = tuple(row.cells.get(name, "") for name in EPOCH_COLUMNS[:4])
        runs.setdefault(key, []).append(row)
    firsts = {id(group[0]): group for group in runs.values()}

    def read(row: Row) -> Measurement:
        return _of_epochs(firsts[id(row)], devices)

    found = left_out.use(path, [group[0] for group in runs.values()], read, say)
    if not found:
        raise DataError(f"{path} has its columns and no row")
    return found


def _of_epochs(group: list[Row], devices: Mapping[str, Device] | None) -> Measurement:
    """Return what the rows of a run say."""
    ordered = sorted(group, key=lambda row: row.number("epoch", low=-1.0))
    first = ordered[0]
    where = environment(first.text("training environment"))
    if where not in _GPUS:
        raise DataError(f"{first.where}: the GPU of the environment {where!r} is unknown; known: {', '.join(_GPUS)}")
    device = find_device(_GPUS[where], devices)
    epochs = tuple(Epoch(row.number("duration (s)"), row.number("gpu energy (kJ)") * _J_PER_KJ) for row in ordered)
    ram_kj = [row.optional("ram energy (kJ)", low=-1e-12) for row in ordered]
    known_ram = [value for value in ram_kj if value is not None]
    job = gaissa_job(
        device,
        environment=where,
        architecture=first.text("architecture"),
        dataset=first.text("dataset"),
        batch_size=int(first.number("batch size")),
        image_px=image_px(first),
        ram_gb=first.optional("total ram (GB)"),
        where=first.where,
    )
    ram_j = _J_PER_KJ * float(np.mean(known_ram)) if known_ram else None
    return of_series(job, epochs, ram_j, first.text("run_id"), f"{first.path.name} epochs", first.where)


def of_series(
    job: Job, epochs: tuple[Epoch, ...], ram_j: float | None, replicate: str, source: str, where: str
) -> Measurement:
    """Return the measurement of a run whose epochs were recorded.

    Args:
        job: what was known before it.
        epochs: all of them.
        ram_j: joules of modelled memory per epoch; None if unknown.
        replicate: name of the run.
        source: file.
        where: file and line.

    Raises:
        DataError: if the watts cannot be.
    """
    seconds, joules = sum(one.seconds for one in epochs), sum(one.joules for one in epochs)
    check_watts(where, joules / seconds, job.limit_w)
    return Measurement(
        job,
        Scopes(gpu_j=joules / len(epochs), ram_j=ram_j),
        seconds_per_epoch=seconds / len(epochs),
        watts=joules / seconds,
        total_s=seconds,
        total_j=joules,
        replicate=replicate,
        source=source,
        study=STUDY,
        epochs=epochs,
        trusted=job.device.name not in UNINFORMATIVE,
    )
