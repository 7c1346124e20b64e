"""Import the table in which GAISSA's published figures were gathered: CNNs on three GPUs, mean watts and kJ per epoch.

The files that the studies themselves write are read by :mod:`perjoule.estimate.imports.gaissa_trail`; this table
(``record_type`` in its first column) holds what was recovered of data that they did not publish.

Three record types. ``run_krr_recovered`` gives watts and the energy of an epoch, which holds about 2 % of modelled RAM:
it is taken apart here, and the seconds follow from the two. ``run_seaa2023`` gives watts, seconds and joules of whole
runs; its number of epochs disagrees with the other set, so nothing per epoch is taken from it. Both hold the *same*
runs on the chess data, which therefore share a configuration key and stay on one side of every split.
``config_epoch_duration`` gives seconds per epoch of a configuration; they lie within 1 % of those derived, and are only
read.

On the chess data the first ten epochs train a head on the frozen network and the others all of it; the mean epoch is
therefore counted with nine tenths of a backward pass. The data of 2024 (InceptionV3) keep the network frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perjoule.core.errors import DataError, suggestion
from perjoule.estimate.contract import Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.imports.table import Row, Say, check_watts, use_rows
from perjoule.estimate.workloads import Workload, find_architecture

COLUMNS = ("record_type", "environment", "gpu", "architecture", "dataset", "batch_size", "image_px", "run")
STUDY = "GAISSA"
RAM_OVER_GPU = 0.019
"""Energy of the modelled RAM over that of the GPU, from 33 configurations whose epochs were also timed (± 0.009)."""
UNINFORMATIVE = frozenset({"GTX 750 Ti"})
"""Cards that report the same watts at any load (28.0 ± 0.09 W)."""
_MIXED_SHARE = 0.9
_HEAD_UNITS = (2048, 1024)
_INCEPTION_CHANNELS = 2048
_CLASSES = {"caltech101": 102, "stanford_dogs": 120}
_SAMPLES = {"caltech101": (3059.0, 6085.0), "stanford_dogs": (12000.0, 8580.0)}


def read_gaissa(path: Path, devices: Mapping[str, Device] | None = None, say: Say | None = None) -> list[Measurement]:
    """Read runs and epoch durations.

    Args:
        path: the file.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
        say: is told which lines were left out; None: the log.

    Raises:
        ConfigError: if there is no data sheet of any device.
        DataError: if no line can be used.
    """
    readers = {"run_krr_recovered": _recovered, "run_seaa2023": _whole_run, "config_epoch_duration": _durations}

    def read(row: Row) -> Measurement:
        kind = row.text("record_type")
        if kind not in readers:
            raise DataError(f"{row.where}: unknown record_type {kind!r}: {suggestion(kind, readers)}")
        return readers[kind](row, _job(row, devices))

    return use_rows(path, COLUMNS, read, say)


def _job(row: Row, devices: Mapping[str, Device] | None) -> Job:
    """Return what was known before the run."""
    return gaissa_job(
        find_device(row.text("gpu"), devices),
        environment=row.text("environment"),
        architecture=row.text("architecture"),
        dataset=row.text("dataset"),
        batch_size=int(row.number("batch_size")),
        image_px=row.number("image_px"),
        limit_w=row.optional("gpu_max_power_w"),
        samples=(row.optional("train_images"), row.optional("val_images")),
        forward_gflops=row.optional("gflops_forward"),
        ram_gb=row.optional("ram_total_gb"),
        where=row.where,
    )


def gaissa_job(
    device: Device,
    *,
    environment: str,
    architecture: str,
    dataset: str,
    batch_size: int,
    image_px: float,
    where: str,
    limit_w: float | None = None,
    samples: tuple[float | None, float | None] = (None, None),
    forward_gflops: float | None = None,
    ram_gb: float | None = None,
) -> Job:
    """Return what was known before a run of the two studies.

    Args:
        device: the GPU.
        environment: ``Local Normal User``, ``Local ML Engineer`` or ``Cloud``.
        architecture: as Keras spells it.
        dataset: name of the data.
        batch_size: samples per step.
        image_px: side of an image.
        where: file and line.
        limit_w: highest power limit of the card, in watts; None: the data sheet's.
        samples: images that are trained on and validated with; None: those of the data set.
        forward_gflops: of a forward pass of one image; None: the architecture's.
        ram_gb: memory of the host; None if unknown.

    Raises:
        DataError: if the architecture is unknown.
    """
    dataset = dataset.removesuffix("-occupancy")
    frozen = dataset in _CLASSES
    known = _SAMPLES.get(dataset, (23807.0, 10203.0))
    workload = Workload(
        find_architecture(architecture, where),
        dataset,
        image_px,
        samples[0] or known[0],
        samples[1] or known[1],
        trained_share=0.0 if frozen else _MIXED_SHARE,
        head_parameters=_head_parameters(image_px, dataset) if frozen else 0.0,
        flops_forward=None if forward_gflops is None else forward_gflops * 1e9,
    )
    return Job(
        device,
        workload,
        batch_size,
        power_limit_w=min(device.tdp_w, limit_w or device.tdp_w),
        host=f"gaissa {environment}",
        framework="tensorflow",
        ram_gb=ram_gb,
    )


def _head_parameters(size: float, dataset: str) -> float:
    """Return the weights of the two dense layers and the classifier on the flattened last map of InceptionV3."""
    first, second = _HEAD_UNITS
    side = max(1, int((size - 11) // 32) - 1)  # 1, 2 and 5 for 75, 128 and 224 pixels
    return side * side * _INCEPTION_CHANNELS * first + first * second + second * _CLASSES[dataset]


def _recovered(row: Row, job: Job) -> Measurement:
    """Read mean watts of the GPU and mean kilojoules of an epoch, RAM included."""
    watts, joules = row.number("avg_gpu_power_w"), row.number("epoch_energy_mean_kj") * 1e3
    check_watts(row.where, watts, job.limit_w)
    gpu_j = joules / (1 + RAM_OVER_GPU)
    return Measurement(
        job,
        Scopes(gpu_j=gpu_j, ram_j=joules - gpu_j),
        seconds_per_epoch=gpu_j / watts,
        watts=watts,
        replicate=row.text("run"),
        source=f"{row.path.name} run_krr_recovered",
        study=STUDY,
        trusted=job.device.name not in UNINFORMATIVE,
    )


def _whole_run(row: Row, job: Job) -> Measurement:
    """Read watts, seconds and joules of a whole run."""
    return Measurement(
        job,
        watts=row.number("avg_gpu_power_w"),
        total_s=row.number("duration_s"),
        total_j=row.number("gpu_energy_j"),
        utilization=row.number("gpu_util_pct", high=100.0) / 100,
        replicate=row.text("run"),
        source=f"{row.path.name} run_seaa2023",
        study=STUDY,
        trusted=job.device.name not in UNINFORMATIVE,
    )


def _durations(row: Row, job: Job) -> Measurement:
    """Read the mean seconds per epoch of a configuration."""
    seconds = row.number("epoch_s_mean")
    return Measurement(job, seconds_per_epoch=seconds, source=f"{row.path.name} config_epoch_duration", study=STUDY)
