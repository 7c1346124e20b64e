"""When a run evaluates and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perjoule.train.config import CheckpointConfig, EvaluateConfig
from perjoule.train.stopping import Progress


@dataclass
class Calendar:
    """Says after which steps to evaluate and to save.

    Args:
        evaluate: its section.
        checkpoint: its section.
        samples_per_step: global batch size.
        samples_per_epoch: size of the training split.
        saved_s: seconds of training when the last checkpoint was written.
    """

    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    samples_per_step: int
    samples_per_epoch: int
    saved_s: float = 0.0

    @property
    def evaluate_every_steps(self) -> int | None:
        """Return the steps from one evaluation to the next, rounded where a part of an epoch is no whole number."""
        if self.evaluate.every_epochs is None:
            return self.evaluate.every_steps
        return max(1, round(self._samples_apart / self.samples_per_step))

    @property
    def _samples_apart(self) -> float:
        return (self.evaluate.every_epochs or math.inf) * self.samples_per_epoch

    def evaluates(self, step: int) -> bool:
        """Return whether an evaluation follows a step, counted from 1."""
        if self.evaluate.every_epochs is None:
            return self.evaluate.every_steps is not None and step % self.evaluate.every_steps == 0
        after, before = step * self.samples_per_step, (step - 1) * self.samples_per_step
        return math.floor(after / self._samples_apart) > math.floor(before / self._samples_apart)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint follows a step, counted from 1, whatever the time."""
        return self.checkpoint.every_steps is not None and step % self.checkpoint.every_steps == 0

    def time_to_save(self, progress: Progress) -> bool:
        """Return whether enough minutes have passed; clocks differ, so ranks must agree before they act."""
        minutes = self.checkpoint.every_minutes
        return minutes is not None and progress.seconds - self.saved_s >= 60 * minutes
