"""STEP by epoch energy (del Rey et al.): the epochs so far, and the mean of a window behind the start for the rest."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, planned_epochs
from perjoule.estimate.contract import Job, Needs, Target
from perjoule.estimate.observed import observed


class StepEnergyConfig(Config):
    """The window."""

    kind: Literal["step_energy"] = "step_energy"
    skip: NonNegativeInt = 10
    """Epochs before the window, in which training is taken to become steady."""

    window: PositiveInt = 5
    """Epochs of the window."""

    def build(self) -> StepEnergy:
        """Return the estimator."""
        return StepEnergy(self)


class StepEnergy(Baseline):
    """Knows nothing of phases: a switch behind the window is missed."""

    kind: ClassVar[str] = "step_energy"
    needs: ClassVar[Needs] = Needs.FIRST_EPOCHS
    targets: ClassVar[frozenset[Target]] = frozenset({Target.TOTAL_ENERGY})

    def __init__(self, config: StepEnergyConfig) -> None:
        super().__init__()
        self._config = config

    def _mean(self, job: Job, target: Target) -> float:
        skip = self._config.skip
        seen = observed(job, self.kind, skip + 1)
        joules = [one.joules for one in seen]
        steady = float(np.mean(joules[skip : skip + self._config.window]))
        return sum(joules[:skip]) + steady * (planned_epochs(job, self.kind) - skip)
