"""Green Algorithms (Lannelongue et al., 2021): power limit times measured use, and memory, times the true duration.

PUE is left out, as it is not part of what is measured at the device.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat

from perjoule.config.base import Config
from perjoule.estimate.baseline import Baseline, hindsight, true_seconds
from perjoule.estimate.contract import Job, Needs, Target


class GreenAlgorithmsConfig(Config):
    """What the calculator assumes."""

    kind: Literal["green_algorithms"] = "green_algorithms"
    ram_w_per_gb: NonNegativeFloat = 0.3725
    """Power of a gigabyte of main memory that is installed, used or not."""

    def build(self) -> GreenAlgorithms:
        """Return the estimator."""
        return GreenAlgorithms(self)


class GreenAlgorithms(Baseline):
    """The calculator's formula; use is taken as full where it was not measured, as the calculator does."""

    kind: ClassVar[str] = "green_algorithms"
    needs: ClassVar[Needs] = Needs.TRUE_DURATION
    targets: ClassVar[frozenset[Target]] = frozenset({Target.ENERGY_PER_EPOCH, Target.WATTS, Target.TOTAL_ENERGY})

    def __init__(self, config: GreenAlgorithmsConfig) -> None:
        super().__init__()
        self._config = config

    def _mean(self, job: Job, target: Target) -> float:
        known = hindsight(job, self.kind)
        used = 1.0 if known.utilization is None else known.utilization
        watts = job.limit_w * used + (job.ram_gb or 0.0) * self._config.ram_w_per_gb
        return watts * true_seconds(job, target, self.kind)
