"""Which checkpoints are the best: those with the lowest or highest value of what ``checkpoint.monitor`` names."""

from __future__ import annotations

from dataclasses import dataclass

from perjoule.train.config import CheckpointConfig
from perjoule.train.job import StepRecord
from perjoule.train.stopping import Progress

_OF_STEPS = {"training_loss": "loss", "grad_norm": "grad_norm"}
"""Monitors that are means over steps, with the field of a step's record."""


@dataclass(frozen=True)
class Ranking:
    """Ranks the states of a run, each when it is evaluated. What was ranked by something else is forgotten.

    Args:
        config: the checkpoint section.
        progress: keeps the best values, so that a resumed run goes on with them.
    """

    config: CheckpointConfig
    progress: Progress

    def __post_init__(self) -> None:
        name = f"{self.config.direction} {self.config.monitor}"
        if self.progress.ranked_by != name:
            self.progress.ranked_by, self.progress.top = name, ()
            self.progress.monitored_sum, self.progress.monitored_steps = 0.0, 0

    @property
    def is_of_steps(self) -> bool:
        """Return whether steps are ranked by what they log themselves, so that no held-out split is needed."""
        return self.config.monitor in _OF_STEPS

    def step(self, record: StepRecord) -> None:
        """Take a step into the mean, if it is one that is monitored."""
        if self.is_of_steps:
            self.progress.monitored_sum += float(getattr(record, _OF_STEPS[self.config.monitor]))
            self.progress.monitored_steps += 1

    def evaluated(self, held_out_loss: float) -> bool:
        """Rank the present state; return whether it is among the best.

        Args:
            held_out_loss: nats per position; not finite if there is none.
        """
        progress, value = self.progress, held_out_loss
        if self.is_of_steps:
            steps = progress.monitored_steps
            value = progress.monitored_sum / steps if steps else float("nan")
            progress.monitored_sum, progress.monitored_steps = 0.0, 0
        progress.rank(value, self.config.top, self.config.direction)
        return progress.is_among_the_best
