"""PRE by power (del Rey et al.): kernel ridge on ten static features gives watts; times the true duration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, fitted, hindsight
from perjoule.estimate.contract import Job, Measurement, Needs, Target
from perjoule.estimate.kernel_ridge import KernelRidge, fit_kernel_ridge, static_features


class PrePowerConfig(Config):
    """It has no settings."""

    kind: Literal["pre_power"] = "pre_power"

    def build(self) -> PrePower:
        """Return the estimator."""
        return PrePower()


class PrePower(Baseline):
    """Learns the watts of runs."""

    kind: ClassVar[str] = "pre_power"
    needs: ClassVar[Needs] = Needs.TRUE_DURATION
    targets: ClassVar[frozenset[Target]] = frozenset({Target.ENERGY_PER_EPOCH, Target.WATTS})

    def __init__(self) -> None:
        super().__init__()
        self._model: KernelRidge | None = None

    def _learn(self, measurements: Sequence[Measurement]) -> None:
        known = [(one.job, one.watts) for one in measurements if one.watts is not None]
        watts = np.array([value for _, value in known])
        self._model = fit_kernel_ridge(static_features([job for job, _ in known]), watts)

    def _mean(self, job: Job, target: Target) -> float:
        fitted(self._model, self.kind)
        assert self._model is not None
        watts = float(self._model.predict(static_features([job]))[0])
        if target is Target.WATTS:
            return watts
        return watts * hindsight(job, self.kind).seconds_per_epoch
