"""PRE by epoch energy (del Rey et al.): kernel ridge on ten static features gives joules per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, fitted, planned_epochs
from perjoule.estimate.contract import Job, Measurement, Needs, Target
from perjoule.estimate.kernel_ridge import KernelRidge, fit_kernel_ridge, static_features


class PreEnergyConfig(Config):
    """It has no settings."""

    kind: Literal["pre_energy"] = "pre_energy"

    def build(self) -> PreEnergy:
        """Return the estimator."""
        return PreEnergy()


class PreEnergy(Baseline):
    """Learns the joules per epoch of runs; may answer with a negative number, as published."""

    kind: ClassVar[str] = "pre_energy"
    needs: ClassVar[Needs] = Needs.NOTHING
    targets: ClassVar[frozenset[Target]] = frozenset({Target.ENERGY_PER_EPOCH, Target.TOTAL_ENERGY})

    def __init__(self) -> None:
        super().__init__()
        self._model: KernelRidge | None = None

    def _learn(self, measurements: Sequence[Measurement]) -> None:
        known = [(one.job, one.scopes.device_j) for one in measurements if one.scopes.device_j is not None]
        joules = np.array([value for _, value in known])
        self._model = fit_kernel_ridge(static_features([job for job, _ in known]), joules)

    def _mean(self, job: Job, target: Target) -> float:
        fitted(self._model, self.kind)
        assert self._model is not None
        joules = float(self._model.predict(static_features([job]))[0])
        return joules if target is Target.ENERGY_PER_EPOCH else joules * planned_epochs(job, self.kind)
