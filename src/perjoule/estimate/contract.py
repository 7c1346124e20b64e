"""What an estimator is told, what it learns from, and what it answers.

::

    Device ─┐
            ├─ Job ──────────────┐                  known before the run
    Workload┘                    ├─ Measurement     known after it: seconds, watts, joules by scope
                     Hindsight ──┘                  what published estimators presuppose, and nobody knows before

A job's ``hindsight`` is filled in by the scoring harness alone, and only for estimators that declare that they need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, Protocol

from perjoule.estimate.devices import Device
from perjoule.estimate.workloads import Workload


class Target(StrEnum):
    """A quantity that can be estimated; the value is what tables show."""

    ENERGY_PER_EPOCH = "energy per epoch"
    SECONDS_PER_EPOCH = "seconds per epoch"
    WATTS = "power"
    TOTAL_ENERGY = "total energy"

    @property
    def unit(self) -> str:
        """Return the unit of every figure of this target."""
        return {"seconds per epoch": "s", "power": "W"}.get(self.value, "J")


class Needs(StrEnum):
    """What an estimator presupposes beyond what is known before the run."""

    NOTHING = "nothing"
    TRUE_DURATION = "the true duration"
    FIRST_EPOCHS = "the first epochs"


@dataclass(frozen=True)
class Epoch:
    """One epoch (or another equal part of a run) that was measured.

    Args:
        seconds: its duration.
        joules: energy of the device in it.
    """

    seconds: float
    joules: float


@dataclass(frozen=True)
class Hindsight:
    """What only the finished run tells.

    Args:
        seconds_per_epoch: true duration of an epoch; of the whole run if the job has no number of epochs.
        utilization: mean share of the time in which the device was busy, 0 to 1; None if it was not read.
    """

    seconds_per_epoch: float
    utilization: float | None = None


@dataclass(frozen=True)
class Job:
    """A training run as it is known before it starts.

    An epoch is one pass over ``workload.train_samples`` and ``workload.validation_samples``; a run that is counted in
    steps is one epoch of ``steps · batch_size`` samples.

    Args:
        device: the accelerator, from its data sheet.
        workload: architecture and data set.
        batch_size: samples per optimizer step.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``bf16``: the format of the matrix products.
        power_limit_w: limit that is set on the device; the data sheet's power if none is.
        epochs: planned number of epochs; None if unknown.
        host: the machine around the device where it is known by a name: its processor launches the kernels.
        framework: what launches the kernels there: ``pytorch`` or ``tensorflow``.
        ram_gb: memory of the host; None if unknown.
        observed: epochs that were measured so far, oldest first; empty before the run.
        hindsight: see the module.
    """

    device: Device
    workload: Workload
    batch_size: int
    precision: str = "tf32"
    power_limit_w: float | None = None
    epochs: int | None = None
    host: str = ""
    framework: str = "pytorch"
    ram_gb: float | None = None
    observed: tuple[Epoch, ...] = ()
    hindsight: Hindsight | None = None

    @property
    def limit_w(self) -> float:
        """Return the power that the device may not exceed, in watts."""
        return self.device.tdp_w if self.power_limit_w is None else self.power_limit_w

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch."""
        return math.ceil(self.workload.train_samples / self.batch_size)

    @property
    def workload_key(self) -> tuple[str, str, str]:
        """Return what has to be equal for a second run to do the same arithmetic per sample."""
        return self.workload.architecture.name, self.workload.dataset, self.workload.optimizer

    @property
    def configuration_key(self) -> tuple[str, ...]:
        """Return what tells configurations apart. Runs that differ in power limit or host memory alone share it.

        They are near-replicates: to learn from one and be tested on the other would measure memory, not skill.
        """
        size = f"{self.workload.sample_size:g}"
        return (self.device.name, *self.workload_key, str(self.batch_size), size, self.precision)

    def revealed(self, hindsight: Hindsight | None, observed: Sequence[Epoch] = ()) -> Job:
        """Return the job with what an estimator may see beyond it."""
        return replace(self, hindsight=hindsight, observed=tuple(observed))


@dataclass(frozen=True)
class Scopes:
    """Joules per epoch by what they were spent in; None where it was not measured. They are never added silently.

    Args:
        gpu_j: the accelerator.
        cpu_j: the processor.
        ram_j: main memory.
        pue: factor from these to the energy at the building's meter; it is not contained in them.
    """

    gpu_j: float | None = None
    cpu_j: float | None = None
    ram_j: float | None = None
    pue: float | None = None

    @property
    def device_j(self) -> float | None:
        """Return the energy of the accelerator, or of the processor if there is no accelerator."""
        return self.gpu_j if self.gpu_j is not None else self.cpu_j


@dataclass(frozen=True)
class Measurement:
    """A run, or the mean of runs, that was measured.

    Args:
        job: what was known before it.
        scopes: joules per epoch, by scope.
        seconds_per_epoch: None if the source does not tell.
        watts: mean power of the device; None if unknown.
        total_s: seconds of the whole run; None if unknown.
        total_j: joules of the device over the whole run; None if unknown.
        utilization: mean share of the time in which the device was busy, 0 to 1; None if unknown.
        replicate: which of several equal runs this is.
        source: file, and record type if it has several.
        study: who measured, so that figures of different campaigns are told apart.
        epochs: its epochs one by one, where they were recorded.
        trusted: whether the power sensor can be believed; False for one that shows the same figure at any load.
        num_devices: devices of the run. All joules and watts are the share of one of them.
    """

    job: Job
    scopes: Scopes = Scopes()
    seconds_per_epoch: float | None = None
    watts: float | None = None
    total_s: float | None = None
    total_j: float | None = None
    utilization: float | None = None
    replicate: str = ""
    source: str = ""
    study: str = ""
    epochs: tuple[Epoch, ...] = ()
    trusted: bool = True
    num_devices: int = 1

    def value(self, target: Target) -> float | None:
        """Return the measured figure of a target in its unit, or None."""
        return {
            Target.ENERGY_PER_EPOCH: self.scopes.device_j,
            Target.SECONDS_PER_EPOCH: self.seconds_per_epoch,
            Target.WATTS: self.watts,
            Target.TOTAL_ENERGY: self.total_j,
        }[target]

    @property
    def hindsight(self) -> Hindsight | None:
        """Return what this run told once it was over; None if its duration is unknown."""
        seconds = self.total_s if self.seconds_per_epoch is None else self.seconds_per_epoch
        return None if seconds is None else Hindsight(seconds, self.utilization)


@dataclass(frozen=True)
class Estimate:
    """A figure with the interval in which the true one lies with a probability of 90 %.

    Args:
        mean: the estimate; the median of its distribution, which is skewed.
        low: lower end.
        high: upper end.
        unit: of the three.
        method: kind of the estimator.
    """

    mean: float
    low: float
    high: float
    unit: str
    method: str


class Estimator(Protocol):
    """Something that learns from measurements and says what a job will take."""

    kind: ClassVar[str]
    needs: ClassVar[Needs]
    targets: ClassVar[frozenset[Target]]

    def fit(self, measurements: Sequence[Measurement]) -> None:
        """Learn from measurements; what was learned before is forgotten.

        Raises:
            DataError: if there are too few.
        """

    def predict(self, job: Job, target: Target) -> Estimate:
        """Estimate one quantity of a job.

        Raises:
            ConfigError: if the estimator does not know the target, or the job lacks what it needs.
            DataError: if it has not been fitted.
        """

    def predict_all(self, jobs: Sequence[Job], target: Target) -> list[Estimate]:
        """Estimate one quantity of many jobs, in their order.

        Raises:
            ConfigError: as :meth:`predict`.
            DataError: as :meth:`predict`.
        """
