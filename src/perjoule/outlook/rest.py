"""What is left of a run: every condition that may end it is carried to its end, and the first one counts.

Three unknowns are kept apart: the seconds and joules of a step (``series``), what comes besides on schedule
(evaluations, checkpoints), and when the training will stop: at a number of steps, after some seconds or joules, or by
patience (``early_stopping``). A condition in steps leaves the seconds and the joules uncertain; one in seconds leaves
the steps and the joules so, and one in joules the steps and the seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perjoule.outlook.early_stopping import evaluations_left
from perjoule.outlook.series import Span, find_level, rest_of

Floats = NDArray[np.float64]
_RECURRENT_SD = 0.2
"""Relative standard deviation of an evaluation or a checkpoint, while few of a run were seen."""
_CHECKPOINT_BYTES = 12
"""Of a weight with the two moments of AdamW, in float32."""
_NOTICED_S = 0.2
"""From the use of a joule to the look that finds it in the samples, in the mean."""
_Z = 1.645  # two-sided 90 % of a Gaussian
_LEAST_SHARE = 0.05
"""The low end of a cost is taken to be at least so much of it where it is divided by."""


@dataclass(frozen=True)
class Recurrent:
    """Something that comes on schedule, inside steps and once more at the end.

    Args:
        every: steps between two; None: only at the end.
        spent_s: seconds of each so far.
        guess_s: of one, as long as there was none.
        at_end: how often it comes at the end, unless the last step has one by schedule: 1, or 0 without.
    """

    every: int | None
    spent_s: Sequence[float]
    guess_s: Span
    at_end: int = 1

    def each_s(self) -> Span:
        """Return the seconds of one."""
        num = len(self.spent_s)
        if not num:
            return self.guess_s
        mean = float(np.mean(self.spent_s))
        sd = math.sqrt((2 * (_RECURRENT_SD * mean) ** 2 + num * float(np.var(self.spent_s))) / (2 + num))
        half = _Z * sd / math.sqrt(num)
        return Span(mean, max(0.0, mean - half), mean + half)

    def ahead(self, done: float, left: float) -> float:
        """Return how many are still to come.

        Args:
            done: steps that were taken.
            left: steps that are left.
        """
        if self.every is None:
            return self.at_end
        last = done + left
        return last // self.every - done // self.every + (self.at_end if last % self.every else 0)


def guess_recurrent(
    step_s: float, batches: int | None, held_out_batches: float | None, parameters: float
) -> tuple[Span, Span]:
    """Return the seconds of an evaluation and of a checkpoint before there was one.

    Args:
        step_s: of a step.
        batches: most batches of an evaluation; None: all of the split.
        held_out_batches: batches of the split; None if that is not known.
        parameters: weights of the model.
    """
    known = [float(one) for one in (batches, None if held_out_batches is None else math.ceil(held_out_batches)) if one]
    # A step is three forward passes, or two to six of what an evaluation does. Without a known size there may be none.
    evaluation = Span(*(min(known) * step_s * share for share in (1 / 3, 1 / 6, 0.6))) if known else Span(0.0, 0.0, 0.0)
    copied_s = [parameters * _CHECKPOINT_BYTES / rate for rate in (1e9, 1e10, 1e8)]
    return evaluation, Span(*copied_s)


@dataclass(frozen=True)
class Patience:
    """The condition that ends a run when its held-out loss no longer falls.

    Args:
        evaluations: in a row without a better loss that end the run.
        every: steps between two evaluations.
        losses: of each evaluation so far; one that was not finite is infinite.
    """

    evaluations: int
    every: int
    losses: Sequence[float]


@dataclass(frozen=True)
class Past:
    """What is known of a run so far.

    Args:
        num_done: steps that led to the present weights.
        step_s: (num_blocks,) seconds of a step, without evaluations and checkpoints, each the mean of a block of steps.
        block: steps in each block.
        step_j: (num_energy_blocks,) joules of a step, likewise; None if nothing was metered.
        energy_block: steps in each of these.
        mean_w: mean power, taken for evaluations and checkpoints; None if nothing was metered.
        recurrent: evaluations and checkpoints.
        steps_left: condition to the steps that it leaves.
        seconds_left: condition to seconds in steps.
        joules_left: condition to joules.
        patience: None without.
    """

    num_done: int
    step_s: Floats
    block: float = 1.0
    step_j: Floats | None = None
    energy_block: float = 1.0
    mean_w: float | None = None
    recurrent: tuple[Recurrent, ...] = ()
    steps_left: Mapping[str, float] = field(default_factory=dict)
    seconds_left: Mapping[str, float] = field(default_factory=dict)
    joules_left: Mapping[str, float] = field(default_factory=dict)
    patience: Patience | None = None


@dataclass(frozen=True)
class Outlook:
    """What a run still needs.

    Args:
        num_done: steps that led to the present weights.
        steps: that are left.
        step_s: seconds of the next one.
        seconds: until the end, evaluations and checkpoints included.
        joules: of these; None if nothing was metered.
        ends_by: the condition that will be met first, ``stop.patience`` included.
    """

    num_done: int
    steps: Span
    step_s: Span
    seconds: Span
    joules: Span | None
    ends_by: str


class _End(NamedTuple):
    """What a condition leaves."""

    steps: Span
    seconds: Span
    joules: Span | None


def look_ahead(past: Past) -> Outlook | None:
    """Return what a run still needs, or None if it has no end that is known."""
    return _Ends(past).rest()


class _Ends:
    """Carries each condition to its end, which gives all three figures."""

    def __init__(self, past: Past) -> None:
        self.past = past
        self.level = find_level(past.step_s)
        self.level_j = None if past.step_j is None or not len(past.step_j) else find_level(past.step_j)
        self.often = [(one.each_s().mean / one.every) for one in past.recurrent if one.every]
        self.end_s = sum(one.each_s().mean * one.at_end for one in past.recurrent)

    def rest(self) -> Outlook | None:
        """Return the end that is reached first. Its low ends are the soonest of all ends."""
        past = self.past
        ends = {name: self._by_steps(Span(num, num, num)) for name, num in _left(past.steps_left)}
        ends |= {name: self._by_seconds(num) for name, num in _left(past.seconds_left)}
        if self.level_j is not None:
            ends |= {name: self._by_joules(num) for name, num in _left(past.joules_left)}
        if not ends:
            return None
        if past.patience is not None:
            ends["stop.patience"] = self._by_patience(past.patience, min(one.steps.mean for one in ends.values()))
        first = min(ends, key=lambda name: ends[name].seconds.mean)
        found = ends.values()
        joules = [one.joules for one in found if one.joules is not None]
        return Outlook(
            num_done=past.num_done,
            steps=_first([one.steps for one in found]),
            step_s=rest_of(self.level, 1),
            seconds=_first([one.seconds for one in found]),
            joules=_first(joules) if joules else None,
            ends_by=first,
        )

    def _by_steps(self, steps: Span) -> _End:
        """Return the end after some steps."""
        return _End(steps, _over(steps, self._seconds), None if self.level_j is None else _over(steps, self._joules))

    def _by_seconds(self, limit_s: float) -> _End:
        """Return the end after some seconds in steps; the last step is finished, and what comes at the end follows."""
        num = limit_s / (self.level.mean + sum(self.often))
        seconds = Span(limit_s + self.end_s, limit_s, limit_s + 2 * self.end_s + rest_of(self.level, 1).high)
        joules = None if self.level_j is None else self._joules(num)
        return _End(_fitting(num, self._seconds(num)), seconds, joules)

    def _by_joules(self, limit_j: float) -> _End:
        """Return the end after some joules."""
        assert self.level_j is not None
        watts = self.past.mean_w or 0.0
        num = limit_j / (self.level_j.mean + sum(self.often) * watts)
        steps = _fitting(num, self._joules(num))
        after_s = self.end_s + _NOTICED_S
        joules = Span(limit_j + after_s * watts, limit_j, limit_j + 2 * after_s * watts)
        return _End(steps, _over(steps, self._seconds), joules)

    def _by_patience(self, patience: Patience, most: float) -> _End:
        """Return the end by patience, or that after ``most`` steps where it comes first."""
        every, done = patience.every, self.past.num_done
        left = evaluations_left(patience.losses, patience.evaluations, max(1, math.ceil(most / every)))
        to_next = every - done % every
        return self._by_steps(Span(*(min(most, max(0.0, to_next + (num - 1) * every)) for num in left)))

    def _seconds(self, steps: float) -> Span:
        """Return the seconds of some steps and of all that comes besides."""
        past = self.past
        return _sum([rest_of(self.level, steps / past.block).times(past.block), *self._besides(steps)])

    def _joules(self, steps: float) -> Span:
        """Return the joules of some steps and of all that comes besides."""
        assert self.level_j is not None
        block, watts = self.past.energy_block, self.past.mean_w or 0.0
        of_steps = rest_of(self.level_j, steps / block).times(block)
        return _sum([of_steps, *(one.times(watts) for one in self._besides(steps))])

    def _besides(self, steps: float) -> list[Span]:
        """Return the seconds of evaluations and checkpoints while, and after, some steps are taken."""
        return [one.each_s().times(one.ahead(self.past.num_done, steps)) for one in self.past.recurrent]


def _left(conditions: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the conditions; one that is exceeded leaves nothing."""
    return [(name, max(0.0, num)) for name, num in conditions.items()]


def _first(spans: Sequence[Span]) -> Span:
    """Return the smallest of each end."""
    mean, low, high = (min(each) for each in zip(*spans, strict=True))
    return Span(mean, low, high)


def _sum(spans: Sequence[Span]) -> Span:
    """Add up figures whose errors are independent of one another."""
    mean = sum(one.mean for one in spans)
    down = math.hypot(*(one.mean - one.low for one in spans))
    up = math.hypot(*(one.high - one.mean for one in spans))
    return Span(mean, max(0.0, mean - down), mean + up)


def _fitting(num: float, cost: Span) -> Span:
    """Return how many steps fit, if as many as ``num`` are expected to, and would cost ``cost``."""
    if not cost.mean:
        return Span(0.0, 0.0, 0.0)
    return Span(num, num * cost.mean / cost.high, num * cost.mean / max(cost.low, _LEAST_SHARE * cost.mean))


def _over(steps: Span, cost: Callable[[float], Span]) -> Span:
    """Return the cost of an uncertain number of steps: both errors, independent of one another."""
    mean, low, high = cost(steps.mean), cost(steps.low), cost(steps.high)
    down = math.hypot(mean.mean - mean.low, mean.mean - low.mean)
    up = math.hypot(mean.high - mean.mean, high.mean - mean.mean)
    return Span(mean.mean, max(0.0, mean.mean - down), mean.mean + up)
