"""What is still to be paid when a run ends: a step, an evaluation, a checkpoint, in seconds.

A budget is kept by stopping while there is still room for what comes after the last step. What was seen tells how much
that is; what was not seen yet is bounded from above.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import nn

from perjoule.data.contract import Samples
from perjoule.models.contract import count_parameters
from perjoule.train.calendar import Calendar
from perjoule.train.config import TrainConfig
from perjoule.train.stopping import Progress
from perjoule.train.stream import Stream

SPARE = 1.1
"""How much longer than the longest of the last ones the next one may take."""
AFTER_S = 0.1
"""What ending a segment takes beside its evaluation and checkpoint, meters included."""
_CHECKPOINT_BYTES_PER_S = 1e8
_CHECKPOINT_BYTES = 12
"""Per weight: a float32 and two moments."""
_LAST_STEPS = 5


@dataclass
class Costs:
    """Learns what the parts of a run take.

    Args:
        progress: where the run is; shared with the loop.
        calendar: when it evaluates and saves.
        evaluation_batches: batches of one evaluation; 0 if there is none.
        parameters: weights of the model.
        eager_step_s: of a step that was not compiled, if one was timed before training.
        evaluation_batch_s: of one held-out batch, if one was timed.
    """

    progress: Progress
    calendar: Calendar
    evaluation_batches: int
    parameters: int
    eager_step_s: float | None = None
    evaluation_batch_s: float | None = None
    _steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST_STEPS))
    _evaluation_s: float | None = None
    _checkpoint_s: float | None = None
    _besides_s: float = 0.0

    @classmethod
    def of(
        cls, config: TrainConfig, progress: Progress, stream: Stream, held_out: Samples | None, model: nn.Module
    ) -> Costs:
        """Return the costs of a run that has cost nothing yet."""
        calendar = Calendar(
            config.evaluate, config.checkpoint, config.batch.size, stream.epoch_samples, progress.seconds
        )
        batches = stream.num_held_out(held_out, config.evaluate.batches)
        return cls(progress, calendar, batches, count_parameters(model))

    def __post_init__(self) -> None:
        self._seen, self._seen_s = self.progress.step, self.progress.seconds
        self._first_s: float | None = None

    def evaluated(self, seconds: float) -> None:
        """Take note of an evaluation after the present step."""
        self._evaluation_s = max(seconds, self._evaluation_s or 0.0)
        self._besides_s += seconds

    def saved(self, blocked_s: float, write_s: float) -> None:
        """Take note of a checkpoint.

        Args:
            blocked_s: how long training waited for it.
            write_s: how long it was written, beside training.
        """
        self._checkpoint_s = max(blocked_s + write_s, self._checkpoint_s or 0.0)

    def blocked(self, seconds: float) -> None:
        """Take note of what a checkpoint after the present step has taken from it."""
        self._besides_s += seconds

    @property
    def step_s(self) -> float | None:
        """Return what a step takes at most, without evaluation and checkpoint; None if nothing is known."""
        if self.progress.step > self._seen:
            took_s = max(0.0, self.progress.seconds - self._seen_s - self._besides_s)
            took_s /= self.progress.step - self._seen
            if self._first_s is None:
                self._first_s = took_s
            else:
                self._steps_s.append(took_s)
            self._seen, self._seen_s, self._besides_s = self.progress.step, self.progress.seconds, 0.0
        if self._steps_s:
            return SPARE * max(self._steps_s)
        # The first step may have been compiled as well; the one that was timed had no optimizer.
        known = [SPARE * seconds for seconds in (self._first_s, 1.5 * (self.eager_step_s or 0.0)) if seconds]
        return min(known, default=None)

    @property
    def end_s(self) -> float:
        """Return what the last evaluation and checkpoint take at most."""
        return self.evaluation_s + self.checkpoint_s + AFTER_S

    @property
    def evaluation_s(self) -> float:
        """Return what an evaluation takes at most: no longer than steps on as many batches."""
        if self._evaluation_s is not None:
            return SPARE * self._evaluation_s
        if self.evaluation_batch_s is not None:
            return SPARE * self.evaluation_batches * self.evaluation_batch_s
        return self.evaluation_batches * max(self.eager_step_s or 0.0, self.step_s or 0.0)

    @property
    def checkpoint_s(self) -> float:
        """Return what a checkpoint takes at most."""
        if self._checkpoint_s is not None:
            return SPARE * self._checkpoint_s
        return self.parameters * _CHECKPOINT_BYTES / _CHECKPOINT_BYTES_PER_S

    def ahead_s(self, num_steps: int) -> float:
        """Return the seconds of the next steps, with what follows them on schedule, and of the end after them."""
        seconds = self.end_s
        for step in range(self.progress.step + 1, self.progress.step + 1 + num_steps):
            seconds += self.step_s or 0.0
            seconds += self.evaluation_s if self.calendar.evaluates(step) else 0.0
            seconds += self.checkpoint_s if self.calendar.saves(step) else 0.0
        return seconds
