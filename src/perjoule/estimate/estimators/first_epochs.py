"""First-epochs line (as Carbontracker does): the mean of the first epochs times the number of epochs."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, planned_epochs
from perjoule.estimate.contract import Job, Needs, Target
from perjoule.estimate.observed import observed


class FirstEpochsConfig(Config):
    """How much is watched."""

    kind: Literal["first_epochs"] = "first_epochs"
    epochs: PositiveInt = 1
    """Number of epochs from the start; those that are not measured yet are left out."""

    def build(self) -> FirstEpochs:
        """Return the estimator."""
        return FirstEpochs(self)


class FirstEpochs(Baseline):
    """A straight line through start-up, compilation and cache filling."""

    kind: ClassVar[str] = "first_epochs"
    needs: ClassVar[Needs] = Needs.FIRST_EPOCHS
    targets: ClassVar[frozenset[Target]] = frozenset({Target.TOTAL_ENERGY})

    def __init__(self, config: FirstEpochsConfig) -> None:
        super().__init__()
        self._config = config

    def _mean(self, job: Job, target: Target) -> float:
        first = observed(job, self.kind, 1)[: self._config.epochs]
        return float(np.mean([one.joules for one in first])) * planned_epochs(job, self.kind)
