"""The measurements beside the tests, and jobs made by hand."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from perjoule.estimate.contract import Job, Measurement, Scopes
from perjoule.estimate.devices import DEVICES
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.splits import typical
from perjoule.estimate.workloads import ARCHITECTURES, Workload

DATA = Path(__file__).parent / "data"
GAISSA = DATA / "gaissa_training_energy.csv"
ZEUS = (DATA / "summary_power_v100.csv", DATA / "summary_power_p100.csv")


@cache
def gaissa_runs() -> tuple[Measurement, ...]:
    return tuple(read_measurements([GAISSA]))


@cache
def gaissa() -> tuple[Measurement, ...]:
    return tuple(typical(gaissa_runs()))


@cache
def zeus() -> tuple[Measurement, ...]:
    return tuple(typical(read_measurements(ZEUS)))


def make_job(
    device: str = "RTX 3090",
    architecture: str = "resnet50",
    batch_size: int = 32,
    limit_w: float | None = None,
    epochs: int | None = None,
    **workload: float | str,
) -> Job:
    """Return a job of 10,000 samples of 128 pixels."""
    work = Workload(ARCHITECTURES[architecture], "made", 128, 10_000)
    work = replace(work, **workload)  # type: ignore[arg-type]
    return Job(DEVICES[device], work, batch_size, power_limit_w=limit_w, epochs=epochs, host=f"host of {device}")


def measure(job: Job, seconds: float, watts: float, replicate: str = "") -> Measurement:
    """Return a measurement of a job by hand."""
    return Measurement(job, Scopes(gpu_j=seconds * watts), seconds, watts, replicate=replicate, study="made")
