"""Ours: FLOPs, bytes, kernels and batch through a physical formula with priors from data sheets, and honest intervals.

What is believed of a job is drawn (:meth:`perjoule.estimate.hierarchy.Hierarchy.draw`); the estimate is the geometric
mean, the interval holds nine tenths of the draws. A device that was never measured keeps the width of its prior, which
was chosen by leaving devices out, and every run of it takes some of it away. For other kinds of novelty (another batch
of a known workload, a workload that is new on the device, a new data set or architecture) it is measured by how much
intervals are too wide or too narrow: the rows are left out in groups of that kind, and the 90 % quantile of error over
predicted spread becomes a factor. Groups count alike, however many rows they have, as rows of one group err together;
and as few groups say little, the factor 1 counts as four groups more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from perjoule.config.base import Config
from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.baseline import check_target, fitted, planned_epochs
from perjoule.estimate.contract import Estimate, Job, Measurement, Needs, Target
from perjoule.estimate.hierarchy import Hierarchy
from perjoule.estimate.step_model import WIDTHS, Floats, Widths

_GAUSSIAN_90, _STUDENT_90 = 1.645, 2.015  # half of the 90 % interval in standard deviations; with 5 degrees of freedom
_LEAST_FACTOR = 0.1
_RUN_SD = 0.03  # of the logarithm of the joules of one measured run
_OUTPUT = {Target.SECONDS_PER_EPOCH: 0, Target.WATTS: 1, Target.ENERGY_PER_EPOCH: 2, Target.TOTAL_ENERGY: 2}
_CONFIGURATION, _COMBINATION, _DATASET, _ARCHITECTURE, _DEVICE = (
    "configuration",
    "combination",
    "dataset",
    "architecture",
    "device",
)


class PhysicalConfig(Config):
    """How far the priors reach, and how much is left to them."""

    kind: Literal["physical"] = "physical"
    device_width: PositiveFloat = WIDTHS.device
    """Factor of the standard deviations by which devices differ in the priors."""
    host_width: PositiveFloat = WIDTHS.host
    """Standard deviation of the logarithm of hosts' slowness, shared and each host's own."""
    pair_width: PositiveFloat = WIDTHS.pair
    """Standard deviation of what a network does on one device alone."""
    prior_groups: PositiveInt = 4
    """Number of groups of measurements against which the width of what is drawn is weighed, unchanged."""

    @classmethod
    def of(cls, widths: Widths) -> PhysicalConfig:
        """Return the settings with these widths."""
        return cls(device_width=widths.device, host_width=widths.host, pair_width=widths.pair)

    def build(self) -> Physical:
        """Return the estimator."""
        return Physical(self)


class Physical:
    """Predicts seconds, watts and joules of jobs on devices and of architectures it may never have seen."""

    kind: ClassVar[str] = "physical"
    needs: ClassVar[Needs] = Needs.NOTHING
    targets: ClassVar[frozenset[Target]] = frozenset(Target)

    def __init__(self, config: PhysicalConfig) -> None:
        self._config = config
        self._model: Hierarchy | None = None
        self._factors: dict[str, Floats] = {}
        self._own: dict[str, Floats] = {}
        self._known: dict[str, frozenset[str]] = {}

    def fit(self, measurements: Sequence[Measurement]) -> None:
        """Learn from measurements whose work is known; medians of replicates.

        Raises:
            DataError: if none has known work and seconds or trusted watts.
        """
        rows = replicate_medians(measurements)
        usable = [(job, log_y) for job, log_y in rows if job.workload.forward_flops > 0]
        if not usable:
            raise DataError(
                "physical needs at least one measured run with the FLOPs of its architecture and its seconds or watts"
            )
        jobs = [job for job, _ in usable]
        config = self._config
        widths = Widths(config.device_width, config.host_width, config.pair_width)
        self._model = Hierarchy(jobs, np.array([log_y for _, log_y in usable]).T, widths)
        self._known = {level: frozenset(_group(job, level) for job in jobs) for level in _LEVELS}
        self._factors = {level: self._factor(jobs, level) for level in _LEVELS if level != _DEVICE}
        # On a device that has many configurations, they say more of its next one than those of other devices do.
        self._own = self._device_factors(jobs)

    def _factor(self, jobs: Sequence[Job], level: str) -> Floats:
        """Return the (3,) factors of what is drawn for one kind of novelty: 1 where nothing was left out."""
        groups = [_group(job, level) for job in jobs]
        # A group that was never measured is drawn from Student's distribution, another batch from what is believed.
        of_90 = _GAUSSIAN_90 if level == _CONFIGURATION else _STUDENT_90
        return self._weighed(self._ratios(groups) / of_90, groups, np.ones(3))

    def _device_factors(self, jobs: Sequence[Job]) -> dict[str, Floats]:
        """Return the factors for another configuration on each device."""
        groups = [_group(job, _CONFIGURATION) for job in jobs]
        ratios, factors = self._ratios(groups) / _GAUSSIAN_90, {}
        for device in {job.device.name for job in jobs}:
            mine = [at for at, job in enumerate(jobs) if job.device.name == device]
            factors[device] = self._weighed(ratios[:, mine], [groups[at] for at in mine], self._factors[_CONFIGURATION])
        return factors

    def _ratios(self, groups: Sequence[str]) -> Floats:
        """Return the (3, num_rows) absolute errors over standard deviations when groups are left out."""
        assert self._model is not None
        left_out = self._model.leave_out(groups)
        ratios: Floats = np.abs(left_out.mean) / left_out.sd
        return ratios

    def _weighed(self, ratios: Floats, groups: Sequence[str], otherwise: Floats) -> Floats:
        """Return the (3,) 90 % quantiles of ratios, drawn towards (3,) others if they are of few groups."""
        factors, names = otherwise.copy(), np.array(groups, dtype=np.str_)
        for output in range(3):
            seen = np.isfinite(ratios[output])
            num = len(set(names[seen]))
            if num > 1:
                quantile = max(_quantile(ratios[output][seen], names[seen]), _LEAST_FACTOR)
                prior = self._config.prior_groups
                logs = (num - 1) * np.log(quantile) + prior * np.log(otherwise[output])
                factors[output] = np.exp(logs / (num - 1 + prior))
        return factors

    def _factor_of(self, job: Job, output: int) -> float:
        """Return the factor by which the interval of a job is wider than what is drawn says."""
        level = self.novelty(job)
        if level == _DEVICE:
            return 1.0
        factors = self._own[job.device.name] if level == _CONFIGURATION else self._factors[level]
        return float(factors[output])

    def novelty(self, job: Job) -> str:
        """Return the kind of novelty of a job: the first of device, architecture, … that was never measured."""
        for level in (_DEVICE, _ARCHITECTURE, _DATASET, _COMBINATION):
            if _group(job, level) not in self._known[level]:
                return level
        return _CONFIGURATION

    def predict(self, job: Job, target: Target) -> Estimate:
        """Estimate one quantity of a job.

        Raises:
            ConfigError: if the job has no FLOPs, or the total is asked for without a number of epochs.
            DataError: if it has not been fitted.
        """
        return self.predict_all([job], target)[0]

    def predict_all(self, jobs: Sequence[Job], target: Target) -> list[Estimate]:
        """Estimate one quantity of many jobs; see :meth:`predict`."""
        check_target(self, target)
        fitted(self._model, self.kind)
        assert self._model is not None
        for job in jobs:
            if job.workload.forward_flops <= 0:
                raise ConfigError(f"physical needs the FLOPs of {job.workload.architecture.name!r}, and has 0")
        drawn, output = self._model.draw(jobs), _OUTPUT[target]
        logs = drawn[output] if output < 2 else drawn.sum(axis=0)
        estimates = []
        for job, log, ends in zip(jobs, logs.mean(axis=0), np.quantile(logs, (0.05, 0.95), axis=0).T, strict=True):
            times, factor = (
                planned_epochs(job, self.kind) if target is Target.TOTAL_ENERGY else 1,
                self._factor_of(job, output),
            )
            low, mean, high = (times * float(np.exp(log + factor * (end - log))) for end in (ends[0], log, ends[1]))
            if target is Target.WATTS:  # no interval reaches above what the device may draw, or below 0
                mean, high = min(mean, job.limit_w), min(high, 1.05 * job.limit_w)
            estimates.append(Estimate(mean, low, high, target.unit, self.kind))
        return estimates

    def choose(self, candidates: Sequence[Job], num: int, wanted: Sequence[Job] | None = None) -> list[Job]:
        """Return the jobs whose measurement would tell most, best first: what to run on a device that is new.

        Each is the one that most reduces the expected squared errors of all ``wanted`` jobs, given the ones before it.

        Args:
            candidates: jobs that can be measured.
            num: how many.
            wanted: jobs that will be estimated; None: the candidates themselves.

        Raises:
            DataError: if it has not been fitted.
        """
        fitted(self._model, self.kind)
        assert self._model is not None
        both = [*candidates, *(candidates if wanted is None else wanted)]
        covariance, chosen = self._model.covariance(both), list[Job]()
        for _ in range(min(num, len(candidates))):
            own = np.diagonal(covariance)[: len(candidates)] + _RUN_SD**2
            gain = (covariance[: len(candidates), len(candidates) :] ** 2).sum(axis=1) / own
            best = int(np.argmax(gain))
            chosen.append(candidates[best])
            covariance = covariance - np.outer(covariance[:, best], covariance[best]) / own[best]
        return chosen


def _quantile(ratios: Floats, groups: NDArray[np.str_]) -> float:
    """Return the quantile that holds nine tenths of the ratios where groups count alike."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(ratios)
    share = np.cumsum(1 / counts[group][order]) / len(counts)
    return float(np.interp(0.9, share, ratios[order]))


_LEVELS = (_CONFIGURATION, _COMBINATION, _DATASET, _ARCHITECTURE, _DEVICE)


def _group(job: Job, level: str) -> str:
    """Return the group to which a job belongs when groups of a kind are left out."""
    if level == _DEVICE:
        return job.device.name
    if level == _ARCHITECTURE:
        return job.workload.architecture.name
    if level == _DATASET:
        return job.workload.dataset
    if level == _COMBINATION:
        return "/".join((job.device.name, *job.workload_key))
    return "/".join(job.configuration_key)


def replicate_medians(measurements: Sequence[Measurement]) -> list[tuple[Job, tuple[float, float]]]:
    """Return one row per configuration, power limit and host memory, with medians over its replicates.

    Returns:
        Jobs with the logarithms of seconds per epoch and trusted watts, NaN where no replicate has the figure; rows
        with neither are left out.
    """
    groups: dict[object, list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.job.configuration_key, one.job.limit_w, one.job.ram_gb), []).append(one)
    rows = []
    for group in groups.values():
        seconds = [one.seconds_per_epoch for one in group if one.seconds_per_epoch is not None]
        watts = [one.watts for one in group if one.watts is not None and one.trusted]
        if seconds or watts:
            logs = [float(np.log(np.median(values))) if values else float("nan") for values in (seconds, watts)]
            rows.append((group[0].job, (logs[0], logs[1])))
    return rows
