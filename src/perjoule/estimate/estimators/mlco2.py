"""MLCO2 Impact (Lacoste et al., 2019): the device's power limit times the true duration."""

from __future__ import annotations

from typing import ClassVar, Literal

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, true_seconds
from perjoule.estimate.contract import Job, Needs, Target


class MLCO2Config(Config):
    """It has no settings."""

    kind: Literal["mlco2"] = "mlco2"

    def build(self) -> MLCO2:
        """Return the estimator."""
        return MLCO2()


class MLCO2(Baseline):
    """An upper bound: no device draws its limit all the time."""

    kind: ClassVar[str] = "mlco2"
    needs: ClassVar[Needs] = Needs.TRUE_DURATION
    targets: ClassVar[frozenset[Target]] = frozenset({Target.ENERGY_PER_EPOCH, Target.WATTS, Target.TOTAL_ENERGY})

    def _mean(self, job: Job, target: Target) -> float:
        return job.limit_w * true_seconds(job, target, self.kind)
