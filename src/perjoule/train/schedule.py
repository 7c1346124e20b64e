"""Learning-rate schedules: a factor of the peak rate for each optimizer step, a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt

from perjoule.config import Config


class ScheduleConfig(Config):
    """Linear warm-up, then one of four shapes.

    With k the number of optimizer steps already taken (0 for the first step), w ``warmup_steps`` and h the last step:

    * warm-up: (k + 1) / (w + 1) for k < w;
    * ``constant``: 1; ``step``: ``decay`` ** floor((k − w) / ``decay_every_steps``);
    * ``linear`` and ``cosine``: from 1 at k = w down to ``floor`` at k = h − 1.
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    warmup_steps: int = Field(default=10, ge=0)
    horizon_steps: PositiveInt | None = None
    """The step at which ``linear`` and ``cosine`` end; None: the run's last step."""
    floor: float = Field(default=0.1, ge=0, le=1)
    decay: float = Field(default=0.5, gt=0, le=1)
    decay_every_steps: PositiveInt = 100

    @property
    def follows_the_end(self) -> bool:
        """Return whether the shape depends on when the run ends."""
        return self.kind in {"linear", "cosine"} and self.horizon_steps is None

    def factor(self, steps_taken: int, last_step: int | None) -> float:
        """Return the factor of the peak learning rate for the next step.

        Args:
            steps_taken: optimizer steps already taken.
            last_step: number of steps of the run, if known.

        Raises:
            ValueError: if the shape needs a horizon and there is none.
        """
        if steps_taken < self.warmup_steps:
            return (steps_taken + 1) / (self.warmup_steps + 1)
        after_warmup = steps_taken - self.warmup_steps
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return float(self.decay ** (after_warmup // self.decay_every_steps))
        horizon = self.horizon_steps or last_step
        if horizon is None:
            raise ValueError(f"a {self.kind} schedule needs horizon_steps or a run of known length")
        share = min(1.0, after_warmup / max(1, horizon - 1 - self.warmup_steps))
        shape = 1 - share if self.kind == "linear" else (1 + math.cos(math.pi * share)) / 2
        return self.floor + (1 - self.floor) * shape
