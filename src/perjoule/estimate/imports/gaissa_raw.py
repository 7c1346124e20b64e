"""Import GAISSA's samples: raw folders of nvidia-smi and psutil, and the table of all samples that is made of them.

Energy is the integral of the samples' watts (trapezia), without the last three, as the study takes it; decimals are
kept, which its own reader cuts off. The RAM's is modelled there as 3.75e-4 W per megabyte. Samples name no batch and
no image size. Those are in ``out/oom-experiments*.csv``, by the second in which a run was started; for the chess data
they were 32 and 128 in every run. Epochs are those of ``epoch_end``; without them a run gives its totals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Epoch, Measurement
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.imports.gaissa import STUDY, UNINFORMATIVE, gaissa_job
from perjoule.estimate.imports.gaissa_trail import CHESS, CHESS_PX, ENVIRONMENTS, environment, of_series
from perjoule.estimate.imports.table import LeftOut, Row, Say, check_watts, header, is_parquet, read_columns, rows

Floats = NDArray[np.float64]
PROFILE_COLUMNS = ("architecture", "timestamp", "gpu_name", "gpu_power_draw", "gpu_max_power", "memory_power_draw")
_ENVIRONMENT = ("train_environment", "train_strategy")
_RUN = ("run_id", "run")
_CHESS_BATCH = 32
_RAM_W_PER_MB = 3.75e-4
_LAST_DROPPED = 3
_STARTED_BEFORE_S = 60.0
_CPU_STARTED_WITHIN_S = 30.0
_LEVELS_UP = 6


@dataclass(frozen=True)
class _Setting:
    """A run that was started: when (seconds), and with which batch and image size."""

    start_s: float
    architecture: str
    dataset: str
    batch_size: int
    image_px: float


@dataclass(frozen=True)
class _Samples:
    """The samples of one run.

    Args:
        path: file.
        environment: as the study abbreviates it.
        architecture: as Keras spells it.
        dataset: name of the data.
        run: name of the run.
        gpu: name of the GPU.
        limit_w: its highest limit.
        time_s: (num,) seconds.
        watts: (num,) of the GPU.
        use: mean use of the GPU, 0 to 1; None if unknown.
        ram_w: mean watts of the modelled RAM; None if unknown.
        epoch_ends_s: (num_epochs,) seconds; empty if unknown.
    """

    path: Path
    environment: str
    architecture: str
    dataset: str
    run: str
    gpu: str
    limit_w: float
    time_s: Floats
    watts: Floats
    use: float | None
    ram_w: float | None
    epoch_ends_s: Floats


def find_raw(folder: Path) -> list[Path]:
    """Return the files of GPU samples in a folder and those below it."""
    return sorted(folder.rglob("gpu-power-*.csv"))


def read_raw(
    files: list[Path], devices: Mapping[str, Device] | None = None, say: Say | None = None
) -> list[Measurement]:
    """Read runs from their samples.

    Args:
        files: ``gpu-power-TIME.csv``, in the folders of the study's layout.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
        say: is told which runs were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of any device.
        DataError: if no run can be used.
    """
    settings = _settings(files[0])
    top = files[0].parent if len(files) == 1 else Path(*_common(files))
    return _use(top, {str(path): partial(_raw_samples, path) for path in files}, settings, devices, say)


def read_profile(path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None) -> list[Measurement]:
    """Read the table of all samples.

    Args:
        path: the file, Parquet.
        devices: as :func:`read_raw`.
        say: as :func:`read_raw`.

    Raises:
        ConfigError: as :func:`read_raw`.
        DataError: as :func:`read_raw`.
    """
    names = header(path)
    where = next((name for name in _ENVIRONMENT if name in names), _ENVIRONMENT[0])
    run = next((name for name in _RUN if name in names), _RUN[0])
    more = [name for name in ("dataset", "epoch", "gpu_usage") if name in names]
    columns = [*PROFILE_COLUMNS, where, run, *more]
    if is_parquet(path):
        table = read_columns(path, columns)
    else:
        lines = list(rows(path, columns))
        table = {name: np.array([row.cells.get(name, "") for row in lines], dtype=object) for name in columns}
    keys = ["\t".join(map(str, key)) for key in zip(*(table[name] for name in _key(where, run, more)), strict=True)]
    names_of, code = np.unique(np.array(keys, dtype=np.str_), return_inverse=True)
    groups = {
        f"{path}, run {key.replace(chr(9), ' ')}": partial(
            _profile_samples, path, {name: values[code == number] for name, values in table.items()}, where, run
        )
        for number, key in enumerate(names_of)
    }
    return _use(path, groups, _settings(path), devices, say)


def _key(where: str, run: str, more: Sequence[str]) -> list[str]:
    return [where, "architecture", *(["dataset"] if "dataset" in more else []), run]


def _use(
    path: Path,
    runs: Mapping[str, Callable[[], _Samples]],
    settings: list[_Setting],
    devices: Mapping[str, Device] | None,
    say: Say | None,
) -> list[Measurement]:
    """Return the measurements of the runs that can be used."""
    names = list(runs)

    def read(row: Row) -> Measurement:
        name = names[row.line - 1]
        return _measurement(runs[name](), settings, devices, name)

    return LeftOut().use(path, [Row(path, number, {}) for number in range(1, len(names) + 1)], read, say)


def _measurement(
    samples: _Samples, settings: list[_Setting], devices: Mapping[str, Device] | None, where: str
) -> Measurement:
    """Return what the samples of a run say."""
    setting = _setting(samples, settings, where)
    time_s, watts = samples.time_s[:-_LAST_DROPPED], samples.watts[:-_LAST_DROPPED]
    known = np.isfinite(watts)
    time_s, watts = time_s[known], watts[known]
    if len(time_s) < 2 or time_s[-1] <= time_s[0]:
        raise DataError(f"{where}: fewer than two samples with watts: nothing was measured")
    joules = np.concatenate([[0.0], np.cumsum(np.diff(time_s) * (watts[1:] + watts[:-1]) / 2)])
    device = find_device(samples.gpu, devices)
    job = gaissa_job(
        device,
        environment=environment(samples.environment),
        architecture=samples.architecture,
        dataset=samples.dataset,
        batch_size=setting.batch_size,
        image_px=setting.image_px,
        limit_w=samples.limit_w,
        where=where,
    )
    ends = samples.epoch_ends_s[(samples.epoch_ends_s > time_s[0])]
    if len(ends):
        at = np.interp(ends, time_s, joules)
        parts = zip(np.diff(ends, prepend=time_s[0]), np.diff(at, prepend=0.0), strict=True)
        epochs = tuple(Epoch(float(one_s), float(one_j)) for one_s, one_j in parts if one_s > 0)
        ram_j = None if samples.ram_w is None else samples.ram_w * float(ends[-1] - time_s[0]) / len(epochs)
        return of_series(job, epochs, ram_j, samples.run, f"{samples.path.name} samples", where)
    seconds = float(time_s[-1] - time_s[0])
    check_watts(where, float(joules[-1]) / seconds, job.limit_w)
    return Measurement(
        job,
        watts=float(joules[-1]) / seconds,
        total_s=seconds,
        total_j=float(joules[-1]),
        utilization=samples.use,
        replicate=samples.run,
        source=f"{samples.path.name} samples",
        study=STUDY,
        trusted=device.name not in UNINFORMATIVE,
    )


def _setting(samples: _Samples, settings: list[_Setting], where: str) -> _Setting:
    """Return batch and image size of a run: of the last one that was started up to a minute before it."""
    near = [
        one
        for one in settings
        if (one.architecture, one.dataset) == (samples.architecture, samples.dataset)
        and 0 <= samples.time_s[0] - one.start_s <= _STARTED_BEFORE_S
    ]
    if near:
        return max(near, key=lambda one: one.start_s)
    if samples.dataset == CHESS:
        return _Setting(0.0, samples.architecture, CHESS, _CHESS_BATCH, CHESS_PX)
    raise DataError(
        f"{where}: batch and image size are not in the samples, and no out/oom-experiments*.csv above this folder "
        "has a run that started then"
    )


def _settings(path: Path) -> list[_Setting]:
    """Return the runs in ``out/oom-experiments*.csv`` in one of the folders above."""
    found = []
    for folder in list(path.absolute().parents)[:_LEVELS_UP]:
        for file in sorted((folder / "out").glob("oom-experiments*.csv")):
            for row in rows(file, ("start_time", "architecture", "dataset", "input_size", "batch_size")):
                size = row.number("input_size")
                found.append(
                    _Setting(
                        _seconds([row.text("start_time")], row.where)[0],
                        row.text("architecture"),
                        row.text("dataset"),
                        int(row.number("batch_size")),
                        max(size, 75.0),  # the network's least: smaller images were enlarged
                    )
                )
    return found


def _raw_samples(path: Path) -> _Samples:
    """Return the samples of a run and what lies beside them."""
    columns = header(path)
    named = {name: next((one for one in columns if one.startswith(starts)), starts[0]) for name, starts in _RAW.items()}
    lines = list(rows(path, named.values()))
    if not lines:
        raise DataError(f"{path}: no sample")
    whole = [row for row in lines if not row.fault]
    stamp = path.stem.removeprefix("gpu-power-")
    where, architecture, dataset = _place(path)
    use = [_quantity(row.cells[named["use"]]) for row in whole]
    return _Samples(
        path,
        where,
        architecture,
        dataset,
        stamp,
        whole[0].text(named["gpu"]),
        _quantity(whole[0].cells[named["limit"]]),
        _seconds([row.cells[named["time"]] for row in whole], str(path)),
        np.array([_quantity(row.cells[named["watts"]]) for row in whole]),
        float(np.nanmean(use)) / 100 if np.isfinite(use).any() else None,
        _ram_watts(path, stamp),
        _epoch_ends(path.with_name(f"epoch_end-{stamp}.csv")),
    )


_RAW = {
    "time": ("timestamp",),
    "gpu": ("gpu_name", "name"),
    "use": ("gpu_usage", "utilization.gpu"),
    "watts": ("gpu_power_draw", "power.draw"),
    "limit": ("gpu_max_power", "power.max_limit"),
}
"""How columns begin: as the study names them, or as nvidia-smi does, which adds the unit."""


def _place(path: Path) -> tuple[str, str, str]:
    """Return environment, architecture and data set from the folders: ``ENV/ARCH/DATA`` or ``ENV/ARCH``.

    Raises:
        DataError: if no folder is an environment of the study.
    """
    parts = path.absolute().parts[:-1]
    for num in (3, 2):
        if len(parts) >= num and parts[-num] in ENVIRONMENTS:
            return parts[-num], parts[1 - num], parts[-1] if num == 3 else CHESS
    raise DataError(f"{path}: must lie in ENVIRONMENT/ARCHITECTURE/DATASET, the first of {', '.join(ENVIRONMENTS)}")


def _ram_watts(path: Path, stamp: str) -> float | None:
    """Return the mean watts of the modelled RAM from the file of psutil that was begun at about the same time."""
    begun = _seconds([stamp], str(path))[0]
    for file in path.parent.glob("cpu-mem-usage-*.csv"):
        other = _seconds([file.stem.removeprefix("cpu-mem-usage-")], str(file))[0]
        if abs(other - begun) <= _CPU_STARTED_WITHIN_S:
            used = [_quantity(row.cells.get("memory usage (MB)", "")) for row in rows(file, ("memory usage (MB)",))]
            return _RAM_W_PER_MB * float(np.nanmean(used)) if np.isfinite(used).any() else None
    return None


def _epoch_ends(path: Path) -> Floats:
    """Return the seconds at which epochs ended; none if there is no file."""
    if not path.exists():
        return np.zeros(0)
    return np.sort(_seconds([row.text("end_time") for row in rows(path, ("epoch", "end_time"))], str(path)))


def _profile_samples(path: Path, table: Mapping[str, Any], where: str, run: str) -> _Samples:
    """Return the samples of one run of the table of all samples."""
    time_s = _seconds(table["timestamp"], str(path))
    order = np.argsort(time_s, kind="stable")
    table, time_s = {name: values[order] for name, values in table.items()}, time_s[order]
    numbers = {name: _numbers(values) for name, values in table.items() if name in _NUMBERS}
    ends = np.zeros(0)
    if "epoch" in numbers and np.isfinite(numbers["epoch"]).any():
        last = np.flatnonzero(np.diff(numbers["epoch"], append=np.inf) != 0)
        ends = time_s[last]
    use = numbers.get("gpu_usage")
    return _Samples(
        path,
        str(table[where][0]),
        str(table["architecture"][0]),
        str(table["dataset"][0]) if "dataset" in table else CHESS,
        str(table[run][0]),
        str(table["gpu_name"][0]),
        float(numbers["gpu_max_power"][0]),
        # The study has left out the last samples already.
        np.append(time_s, [np.nan] * _LAST_DROPPED),
        np.append(numbers["gpu_power_draw"], [np.nan] * _LAST_DROPPED),
        None if use is None or not np.isfinite(use).any() else float(np.nanmean(use)),
        float(np.nanmean(ram)) if np.isfinite(ram := numbers["memory_power_draw"]).any() else None,
        ends,
    )


_NUMBERS = ("gpu_power_draw", "gpu_max_power", "memory_power_draw", "gpu_usage", "epoch")


def _numbers(values: NDArray[Any]) -> Floats:
    """Return numbers; NaN for what is none."""
    if values.dtype.kind in "fiu":
        return values.astype(np.float64)
    return np.array([_quantity(str(value)) for value in values])


def _quantity(text: str) -> float:
    """Return the number of ``119.17 W``; NaN for ``[N/A]``."""
    match = re.match(r"\s*([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)", text)
    return float(match[1]) if match else float("nan")


def _seconds(values: Any, where: str) -> Floats:
    """Return seconds since 1970 of times in the formats of the study's files.

    Raises:
        DataError: if one is no time.
    """
    array = np.asarray(values)
    if array.dtype.kind == "M":
        return array.astype("datetime64[ns]").astype(np.int64) / 1e9
    if array.dtype.kind in "iuf":
        return array.astype(np.float64) / 1e3
    texts = [_iso(str(value)) for value in array]
    try:
        return np.array(texts, dtype="datetime64[us]").astype(np.int64) / 1e6
    except ValueError as error:
        raise DataError(f"{where}: a time cannot be read: {error}") from error


def _iso(text: str) -> str:
    """Return ``2023/03/02 09:00:30.840`` or ``20221205T095542`` as ISO 8601 writes it."""
    text = text.strip().replace("/", "-")
    if match := re.fullmatch(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})", text):
        return "{}-{}-{}T{}:{}:{}".format(*match.groups())
    return text


def _common(files: list[Path]) -> Iterator[str]:
    """Yield the leading parts that all paths share."""
    for parts in zip(*(path.parts for path in files), strict=False):
        if len(set(parts)) > 1:
            return
        yield parts[0]
