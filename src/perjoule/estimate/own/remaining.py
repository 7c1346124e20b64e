"""What is left of a run, from its folder: running, stopped or killed. Reads only; never imports torch.

Three unknowns are kept apart: the seconds and joules of a step (``series``), what comes besides on schedule
(evaluations, checkpoints), and when the training will stop: at a number of steps, epochs or tokens, after some seconds
or joules, or by patience, which has an interval of its own (``early_stopping``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.core.phases import CHECKPOINT, EVALUATE
from perjoule.core.units import J_PER_KWH
from perjoule.estimate.contract import Estimate
from perjoule.estimate.own.early_stopping import evaluations_left
from perjoule.estimate.own.series import find_level, rest_of
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import outermost_accounts
from perjoule.runs.folder import FINISHED
from perjoule.runs.tables import Run

Floats = NDArray[np.float64]
_BLOCKS = 200
"""The energy of steps is looked at in at most so many blocks: a meter does not resolve single short steps."""


@dataclass(frozen=True)
class Rest:
    """What a run still needs. ``None`` is unknown; ``notes`` say why.

    Args:
        num_done: steps that led to the present weights.
        steps: steps that are left.
        step_s: seconds of one of them.
        seconds: until the end, evaluations and checkpoints included.
        joules: of these.
        gco2e: grams, PUE included.
        cost: in the unit's currency, PUE included.
        ends_by: the condition that will be met first.
        notes: what a reader must know, one line each.
    """

    num_done: int
    steps: Estimate
    step_s: Estimate
    seconds: Estimate
    joules: Estimate | None
    gco2e: Estimate | None
    cost: Estimate | None
    ends_by: str
    notes: tuple[str, ...]


def estimate_rest(run: Run) -> Rest:
    """Estimate the rest of a run.

    Raises:
        DataError: if no step of it was timed yet, or it does not say when it ends.
    """
    kept = run.steps.kept
    timed = np.isfinite(kept.training_s)
    if not timed.any():
        raise DataError(f"{run.path} has no timed step yet: wait for the first, or estimate its recipe")
    seconds = kept.training_s[timed]
    level = find_level(seconds)
    notes = [] if run.status != FINISHED else ["the run is finished"]
    each = rest_of(level, 1, len(seconds))
    step_s = Estimate(level.mean, each.low, each.high, "s", f"mean of the last {level.num_values} steps")
    extra_s = _scheduled_s(run)
    per_step = level.mean + extra_s
    joules_of = _Joules(run, notes)
    if run.status == FINISHED:
        steps, ends_by = Estimate(0.0, 0.0, 0.0, "steps", ""), run.reason
    else:
        steps, ends_by = _steps_left(run, per_step, joules_of)
    left_s = _over(steps, lambda num: rest_of(level, num, len(seconds)), extra_s, "s")
    joules = None if joules_of.level is None else joules_of.rest(steps)
    gco2e, cost = _per_joule(run, joules, notes)
    return Rest(int(kept.step[-1]), steps, step_s, left_s, joules, gco2e, cost, ends_by, tuple(notes))


class _Joules:
    """The energy of steps, over all meters that do not contain one another."""

    def __init__(self, run: Run, notes: list[str]) -> None:
        accounts = outermost_accounts(build_ledger(run).merged())
        curves = [one.by_step for one in accounts if len(one.by_step.steps) > 1]
        self.level = None
        self.used_j = sum(one.total_uj for one in accounts) / 1e6
        if not curves:
            notes.append("energy: unknown, no meter was read while it trained")
            return
        first, last = max(int(one.steps[0]) for one in curves), min(int(one.steps[-1]) for one in curves)
        self.block = max(1, (last - first) // _BLOCKS)
        edges = np.arange(first, last + 1, self.block)
        total = sum((np.interp(edges, one.steps, one.energy_uj) for one in curves), np.zeros(len(edges)))
        parts = np.diff(total) / 1e6
        parts = parts[parts > 0]
        if not len(parts):
            notes.append("energy: unknown, the meters have not moved yet")
            return
        self.level, self.num = find_level(parts), len(parts)
        modelled = sorted({one.sensor.domain for one in accounts if one.sensor.modelled})
        if modelled:
            notes.append(f"energy: {', '.join(modelled)} is modelled, not measured")

    @property
    def per_step(self) -> float | None:
        """Return the joules of a step."""
        return None if self.level is None else self.level.mean / self.block

    def rest(self, steps: Estimate) -> Estimate:
        """Return the joules of the steps that are left."""
        level = self.level
        assert level is not None
        return _over(steps, lambda num: rest_of(level, num / self.block, self.num), 0.0, "J")


def _over(steps: Estimate, rest: Any, extra: float, unit: str) -> Estimate:
    """Return the rest over an uncertain number of steps: both errors, independent of one another."""
    mean, low, high = rest(steps.mean), rest(steps.low), rest(steps.high)
    value = mean.mean + extra * steps.mean
    down = math.hypot(mean.mean - mean.low, value - (low.mean + extra * steps.low))
    up = math.hypot(mean.high - mean.mean, high.mean + extra * steps.high - value)
    return Estimate(value, max(0.0, value - down), value + up, unit, steps.method)


def _scheduled_s(run: Run) -> float:
    """Return the seconds of evaluations and checkpoints, per step, by their schedules."""
    total = 0.0
    for phase, section in ((EVALUATE, "evaluate"), (CHECKPOINT, "checkpoint")):
        every = _value(run, f"{section}.every_steps")
        spent = run.phase_s(phase)
        spent = spent[np.isfinite(spent) & (spent > 0)]
        if every and len(spent):
            total += float(spent.mean()) / int(every)
    return total


def _steps_left(run: Run, per_step_s: float, joules: _Joules) -> tuple[Estimate, str]:
    """Return how many steps are left and which condition ends the run."""
    kept = run.steps.kept
    done = int(kept.step[-1])
    tokens = float(np.mean(kept.tokens[-100:]))
    samples = float(np.mean(kept.samples[-100:]))
    ends: dict[str, float] = {}
    if (wanted := _value(run, "stop.steps")) is not None:
        ends["stop.steps"] = wanted - done
    if (wanted := _value(run, "stop.tokens")) is not None:
        ends["stop.tokens"] = math.ceil((wanted - int(kept.tokens.sum())) / tokens)
    if (wanted := _value(run, "stop.epochs")) is not None and (epoch := _samples_per_epoch(run)):
        ends["stop.epochs"] = math.ceil((wanted * epoch - int(kept.samples.sum())) / samples)
    if (wanted := _value(run, "stop.seconds")) is not None:
        ends["stop.seconds"] = (wanted - float(np.nansum(kept.wall_s))) / per_step_s
    if (wanted := _value(run, "stop.energy")) is not None and joules.per_step is not None:
        ends["stop.energy"] = (wanted - joules.used_j) / joules.per_step
    if not ends:
        raise DataError(f"{run.path} does not say when it ends in steps, epochs, tokens, seconds or metered energy")
    first = min(ends, key=lambda name: ends[name])
    left = max(0.0, ends[first])
    certain = Estimate(left, left, left, "steps", first)
    patience, every = _value(run, "stop.patience"), _value(run, "evaluate.every_steps")
    if patience is None or every is None:
        return certain, first
    losses = [math.inf if one.loss is None else one.loss for one in run.kept_evaluations]
    most = math.ceil(left / every)
    found = evaluations_left(losses, int(patience), most)
    to_next = every - done % every
    low, mean, high = (min(left, max(0.0, to_next + (num - 1) * every)) for num in (found.low, found.mean, found.high))
    return Estimate(mean, low, high, "steps", found.method), "stop.patience" if mean < left else first


def _value(run: Run, key: str) -> Any:
    """Return a value of the run's configuration, or None."""
    return run.resolved.get(key, {}).get("value")


def _samples_per_epoch(run: Run) -> int | None:
    """Return the size of the training split, if the manifest knows it."""
    facts = run.fact("data", "facts")
    splits = facts.get("splits") if isinstance(facts, Mapping) else None
    train = splits.get("train") if isinstance(splits, Mapping) else None
    num = train.get("num_samples") if isinstance(train, Mapping) else None
    return int(num) if num else None


def _per_joule(run: Run, joules: Estimate | None, notes: list[str]) -> tuple[Estimate | None, Estimate | None]:
    """Return carbon and cost of an energy, by what the last segment knows of the place."""
    facts = run.segments[-1].facts.get("carbon") if run.segments else None
    if joules is None or not isinstance(facts, Mapping):
        return None, None
    per_joule = float(facts.get("pue") or 1.0) / J_PER_KWH
    price, grams = facts.get("price_per_kwh"), facts.get("g_per_kwh")
    if grams is None:
        notes.append(f"carbon: unknown, {facts.get('unavailable', 'no intensity in the manifest')}")
    return (
        None if grams is None else _scaled(joules, float(grams) * per_joule, "gCO2e"),
        None if price is None else _scaled(joules, float(price) * per_joule, str(facts.get("currency") or "")),
    )


def _scaled(one: Estimate, factor: float, unit: str) -> Estimate:
    return Estimate(one.mean * factor, one.low * factor, one.high * factor, unit, one.method)
