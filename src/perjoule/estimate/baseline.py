"""What the published estimators share: a spread learned from their own errors, and clear refusals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.contract import Estimate, Estimator, Hindsight, Job, Measurement, Needs, Target

_WORST = 4.6  # of a logarithmic error: a factor of a hundred
_WIDE = 0.6
"""Half width of the interval, in logarithms, while no errors are known: a factor of about two either way."""


class Baseline(ABC):
    """A published estimator. A subclass gives ``_mean`` and, if it learns more than its spread, ``_learn``."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    targets: ClassVar[frozenset[Target]]

    def __init__(self) -> None:
        self._half_width = _WIDE

    def fit(self, measurements: Sequence[Measurement]) -> None:
        """Learn from measurements; the interval becomes the 90 % quantile of the errors on them.

        Raises:
            DataError: if there are too few.
        """
        self._half_width = _WIDE
        self._learn(measurements)
        errors = list(self._errors(measurements))
        if len(errors) >= 10:
            self._half_width = float(np.quantile(errors, 0.9))

    def _errors(self, measurements: Iterable[Measurement]) -> Iterable[float]:
        """Yield the absolute logarithmic errors of the first target on measurements."""
        target = Target.TOTAL_ENERGY if self.targets == {Target.TOTAL_ENERGY} else Target.ENERGY_PER_EPOCH
        for one in measurements:
            truth = one.value(target)
            if truth is None or (self.needs is Needs.TRUE_DURATION and one.hindsight is None):
                continue
            if self.needs is Needs.FIRST_EPOCHS and not one.epochs:
                continue
            job = one.job.revealed(one.hindsight, one.epochs[: max(1, len(one.epochs) // 5)])
            mean = self._mean(job, target)
            # Kernel ridge may answer with a negative number: as wrong as an answer can be in the interval's terms.
            yield min(_WORST, abs(float(np.log(mean / truth)))) if mean > 0 else _WORST

    def _learn(self, measurements: Sequence[Measurement]) -> None:  # noqa: B027 -- most published ones learn nothing
        """Learn from measurements."""

    @abstractmethod
    def _mean(self, job: Job, target: Target) -> float:
        """Return the estimate in the target's unit."""

    def predict(self, job: Job, target: Target) -> Estimate:
        """Estimate one quantity of a job.

        Raises:
            ConfigError: if the estimator does not know the target, or the job lacks what it needs.
            DataError: if it has not been fitted and must be.
        """
        check_target(self, target)
        mean = self._mean(job, target)
        factor = float(np.exp(self._half_width))
        return Estimate(mean, mean / factor, mean * factor, target.unit, self.kind)

    def predict_all(self, jobs: Sequence[Job], target: Target) -> list[Estimate]:
        """Estimate one quantity of many jobs; see :meth:`predict`."""
        return [self.predict(job, target) for job in jobs]


def check_target(estimator: Estimator, target: Target) -> None:
    """Refuse a quantity that an estimator does not know.

    Raises:
        ConfigError: says which it knows.
    """
    if target not in estimator.targets:
        known = ", ".join(sorted(estimator.targets))
        raise ConfigError(f"{estimator.kind} does not estimate {target.value}: it knows {known}")


def hindsight(job: Job, kind: str) -> Hindsight:
    """Return what a published estimator presupposes.

    Raises:
        ConfigError: if the job does not have it, as before every run.
    """
    if job.hindsight is None:
        raise ConfigError(f"{kind} needs the true duration, which nobody knows before the run: choose physical")
    return job.hindsight


def true_seconds(job: Job, target: Target, kind: str) -> float:
    """Return the true duration that watts must be multiplied with to give a target; 1 for watts themselves.

    Raises:
        ConfigError: if the job has no hindsight.
    """
    seconds = hindsight(job, kind).seconds_per_epoch
    return {Target.WATTS: 1.0, Target.TOTAL_ENERGY: seconds * (job.epochs or 1)}.get(target, seconds)


def planned_epochs(job: Job, kind: str) -> int:
    """Return the number of epochs of a job.

    Raises:
        ConfigError: if it has none.
    """
    if job.epochs is None:
        raise ConfigError(f"{kind} needs the number of epochs to tell the energy of the whole run")
    return job.epochs


def fitted(model: object, kind: str) -> None:
    """Refuse to predict before a fit.

    Raises:
        DataError: if ``model`` is None.
    """
    if model is None:
        raise DataError(f"{kind} must be fitted on measurements first")
