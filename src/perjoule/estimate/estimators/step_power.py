"""STEP by power (del Rey et al.): mean watts in a window behind the start, times the true duration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, hindsight, planned_epochs
from perjoule.estimate.contract import Job, Needs, Target
from perjoule.estimate.observed import observed


class StepPowerConfig(Config):
    """The window."""

    kind: Literal["step_power"] = "step_power"
    skip: NonNegativeInt = 10
    """Epochs before the window, in which training is taken to become steady."""

    window: PositiveInt = 5
    """Epochs of the window."""

    def build(self) -> StepPower:
        """Return the estimator."""
        return StepPower(self)


class StepPower(Baseline):
    """Presupposes the duration of the whole run."""

    kind: ClassVar[str] = "step_power"
    needs: ClassVar[Needs] = Needs.FIRST_EPOCHS
    targets: ClassVar[frozenset[Target]] = frozenset({Target.TOTAL_ENERGY})

    def __init__(self, config: StepPowerConfig) -> None:
        super().__init__()
        self._config = config

    def _mean(self, job: Job, target: Target) -> float:
        skip = self._config.skip
        window = observed(job, self.kind, skip + 1)[skip : skip + self._config.window]
        watts = sum(one.joules for one in window) / sum(one.seconds for one in window)
        seconds = hindsight(job, self.kind).seconds_per_epoch
        return watts * seconds * planned_epochs(job, self.kind)
