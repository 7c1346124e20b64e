"""What is left of a run while it trains, for its progress line: time, and energy where it is metered.

A step costs an addition; the outlook is computed when a line is drawn, at most once a second. It is a figure for
people: whatever fails in it takes the figure away, and never the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from perjoule.core.errors import PerjouleError
from perjoule.core.units import duration, si
from perjoule.measure.contract import Unavailable
from perjoule.measure.live import LiveEnergy
from perjoule.outlook.live import BoundedSeries
from perjoule.outlook.rest import Outlook, Past, Patience, Recurrent, guess_recurrent, look_ahead
from perjoule.outlook.series import Span
from perjoule.train.calendar import Calendar
from perjoule.train.config import TrainConfig
from perjoule.train.stopping import Goal, Progress

EVERY_S = 1.0
_LEAST_WATCHED_S = 1.0
"""Energy is watched for so long before a power is taken from it."""


class Left:
    """Takes note of a run and says what is left of it.

    Args:
        config: of the run.
        calendar: when it evaluates and saves.
        goal: when it ends.
        progress: where it is; shared with the loop.
        parameters: weights of the model.
        held_out_samples: size of the split that is evaluated on; None without one.
        energy: reads what was used so far; None where nothing is metered.
    """

    def __init__(
        self,
        config: TrainConfig,
        calendar: Calendar,
        goal: Goal,
        progress: Progress,
        parameters: int,
        held_out_samples: int | None,
        energy: LiveEnergy | None,
    ) -> None:
        self._config, self._calendar, self._goal, self._progress, self._energy = (
            config,
            calendar,
            goal,
            progress,
            energy,
        )
        self._parameters, self._held_out = parameters, held_out_samples
        self._steps = BoundedSeries()
        self._evaluations, self._checkpoints, self._losses = BoundedSeries(), BoundedSeries(), list[float]()
        self._last_s, self._besides_s = progress.seconds, 0.0
        self._first: tuple[float, float] | None = None
        self._used_j: float | None = None
        self._next_s, self._text = 0.0, ""

    def step(self) -> None:
        """Take note that a step is under way: the one before it is complete."""
        now_s = self._progress.seconds
        if now_s > self._last_s:
            self._steps.add(max(now_s - self._last_s - self._besides_s, 1e-9))
            self._last_s, self._besides_s = now_s, 0.0

    def evaluated(self, seconds: float, loss: float) -> None:
        """Take note of an evaluation inside the present step."""
        self._besides_s += seconds
        self._evaluations.add(seconds)
        self._losses.append(loss)

    def saved(self, seconds: float) -> None:
        """Take note of a checkpoint inside the present step."""
        self._besides_s += seconds
        self._checkpoints.add(seconds)

    def text(self) -> str:
        """Return what is left, such as ``, 2 min 05 s (1 min 50 s to 2 min 20 s) left``; "" if that is not known."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + EVERY_S
            try:
                self._text = self._describe()
            except (PerjouleError, ArithmeticError, ValueError, OSError, np.linalg.LinAlgError):
                self._text = ""
        return self._text

    def _describe(self) -> str:
        found = self._look_ahead()
        if found is None:
            return ""
        parts = [_show(found.seconds, duration)]
        if found.joules is not None:
            parts.append(_show(found.joules, lambda joules: si(joules, "J", 2)))
        return f", {' and '.join(parts)} left"

    def _look_ahead(self) -> Outlook | None:
        step_s, config, progress = self._steps.means, self._config, self._progress
        if not len(step_s):
            return None
        watts = self._watts()
        evaluate, stop, evaluate_every = config.evaluate, config.stop, self._calendar.evaluate_every_steps
        guesses = guess_recurrent(
            float(np.median(step_s)),
            batches=evaluate.batches if self._held_out else None,
            held_out_batches=None if self._held_out is None else self._held_out / config.batch.size,
            parameters=self._parameters,
        )
        patience = None
        if stop.patience is not None and evaluate_every is not None:
            patience = Patience(stop.patience, evaluate_every, self._losses)
        last = self._goal.last_step
        return look_ahead(
            Past(
                num_done=progress.step,
                step_s=step_s,
                block=self._steps.block,
                step_j=None if watts is None else step_s * watts,
                energy_block=self._steps.block,
                mean_w=watts,
                recurrent=(
                    Recurrent(evaluate_every, self._evaluations.means.tolist(), guesses[0]),
                    Recurrent(config.checkpoint.every_steps, self._checkpoints.means.tolist(), guesses[1]),
                ),
                steps_left={} if last is None else {"stop.steps": last - progress.step},
                seconds_left={} if stop.seconds is None else {"stop.seconds": stop.seconds - progress.seconds},
                joules_left=dict(self._joules_left()),
                patience=patience,
            )
        )

    def _watts(self) -> float | None:
        """Return the mean power since it was first read, or None while that is not known."""
        used = Unavailable("not metered") if self._energy is None else self._energy.read()
        if isinstance(used, Unavailable):
            return None
        self._used_j = used
        seconds = self._progress.seconds
        self._first = first = self._first or (seconds, used)
        watched_s = seconds - first[0]
        return None if watched_s < _LEAST_WATCHED_S or used <= first[1] else (used - first[1]) / watched_s

    def _joules_left(self) -> Iterator[tuple[str, float]]:
        """Yield the budgets with the joules that they leave; carbon at what a joule emitted so far."""
        for budget in self._goal.budgets:
            if budget.unit == "J":
                yield "stop.energy", budget.limit - budget.used
            elif self._used_j and budget.used > 0:
                yield "stop.carbon", (budget.limit - budget.used) * self._used_j / budget.used


def _show(span: Span, write: Callable[[float], str]) -> str:
    """Return a figure with its interval."""
    mean, low, high = (write(float(round(one)) if one >= 10 else one) for one in span)
    return mean if low == high else f"{mean} ({low} to {high})"
