"""The rest of a run from its steps or epochs so far: robust, aware of phases, with an interval that shrinks.

1. *Start-up*: leading values far above what follows (graph tracing, caches that fill) are paid once and not projected.
2. *Phases*: the series is cut where its level changes for good (head to fine-tune, a longer sequence); only the last
   phase is projected. Cuts are sought by binary segmentation of the logarithms (Scott & Knott 1974; the threshold is a
   multiple of the noise of first differences, so that a slow drift is no noise).
3. *Rate*: the mean of that phase, so that evaluations, checkpoints and other work that comes back counts as often as it
   came. A single outlier is left out until there is a second one; meanwhile it widens the interval.
4. *Interval*: the noise of the mean and of what is to come, the drift seen within the phase carried on, and what no
   series tells about its future: a share of the rest that falls as more of the run is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Estimate

Floats = NDArray[np.float64]
METHOD = "online"
_Z = 1.645  # two-sided 90 % of a Gaussian
_MAD = 1.4826  # from the median absolute deviation to a standard deviation
_STARTUP_SDS, _OUTLIER_SDS, _CUT_SDS = 6.0, 8.0, 4.5
_LEAST_SD = 0.005
"""Relative noise that is assumed at least: clocks and meters are not better."""
_LEAST_CUT = 0.02
"""A change of the level by less is drift."""
_LONG = 12
"""A phase is at least this part of what was seen: a neighbour's burst of work is shorter."""
_LEAST_LENGTH = 3
_CARRIED = 0.6
"""Share of a drift that goes on: it often ends, and seldom turns."""
_NOVICE = 0.15
"""Relative standard deviation of the rest after one value."""
_UNSEEN = 0.012
"""Relative standard deviation of the rest, when half of the run was seen, that no series tells about."""


@dataclass(frozen=True)
class Level:
    """What the values are like just now.

    Args:
        mean: the rate: mean of the last phase.
        sd: standard deviation of single values in it.
        wander: standard deviation of the means of its sixths, which neighbours on the machine move as well.
        rare: what a single outlier would add to the mean, if such came back.
        drift: change of the level per value, as seen within the phase.
        start: where the last phase begins.
        num_startup: leading values that are start-up.
        num_values: values that the rate is the mean of.
    """

    mean: float
    sd: float
    wander: float
    rare: float
    drift: float
    start: int
    num_startup: int
    num_values: int


@dataclass(frozen=True)
class Forecast:
    """The whole of a run, what was seen of it included.

    Args:
        seconds: of the whole run.
        joules: of the whole run; None without energies.
        level: of the seconds.
    """

    seconds: Estimate
    joules: Estimate | None
    level: Level


def forecast(durations: ArrayLike, energies: ArrayLike | None, num_total: int) -> Forecast:
    """Estimate the duration and the energy of a whole run from its first steps or epochs.

    Args:
        durations: (num_seen,) seconds of each step or epoch so far.
        energies: (num_seen,) joules of each; None if unknown.
        num_total: steps or epochs of the whole run.

    Raises:
        DataError: if nothing was seen, a value is not above 0, or the arrays do not fit together.
    """
    seconds = _checked(durations, "durations", num_total)
    level = find_level(seconds)
    total_s = total(seconds, level, num_total, "s")
    if energies is None:
        return Forecast(total_s, None, level)
    joules = _checked(energies, "energies", num_total)
    if len(joules) != len(seconds):
        raise DataError(f"{len(joules)} energies do not fit {len(seconds)} durations: give one for each")
    return Forecast(total_s, total(joules, find_level(joules), num_total, "J"), level)


def _checked(values: ArrayLike, name: str, num_total: int) -> Floats:
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} must be a list of at least one number, not of shape {array.shape}")
    if not (np.isfinite(array).all() and (array > 0).all()):
        place = int(np.argmax(~(np.isfinite(array) & (array > 0))))
        raise DataError(f"{name} must be above 0: number {place + 1} is {array[place]:g}")
    if num_total < len(array):
        raise DataError(f"a run of {num_total} cannot have {len(array)} {name}")
    return array


def find_level(values: Floats) -> Level:
    """Return what the values are like at their end.

    Args:
        values: (num_values,) positive.
    """
    num_startup = count_startup(values)
    start = num_startup + last_cut(np.log(values[num_startup:]))
    phase = values[start:]
    median = float(np.median(phase))
    spread = max(_MAD * float(np.median(np.abs(phase - median))), _LEAST_SD * median)
    outlier = phase > median + _OUTLIER_SDS * spread
    usual = phase[~outlier]
    alone = outlier.sum() == 1
    kept = usual if alone else phase
    return Level(
        mean=float(kept.mean()),
        sd=max(float(kept.std()), _LEAST_SD * median),
        wander=_wander(kept),
        rare=(float(phase[outlier][0]) - median) / len(phase) if alone else 0.0,
        drift=_drift(usual),
        start=start,
        num_startup=num_startup,
        num_values=len(kept),
    )


def _wander(values: Floats) -> float:
    """Return the standard deviation of the means of equal parts, 0 if there are too few values for parts."""
    num_parts = min(6, len(values) // _LEAST_LENGTH)
    if num_parts < 2:
        return 0.0
    length = len(values) // num_parts
    return float(values[-num_parts * length :].reshape(num_parts, length).mean(axis=1).std(ddof=1))


def count_startup(values: Floats) -> int:
    """Return how many leading values are start-up: far above the median of what follows."""
    num = 0
    while num + 1 < len(values):
        rest = values[num + 1 :]
        median = float(np.median(rest))
        spread = max(_MAD * float(np.median(np.abs(rest - median))), _LEAST_SD * median)
        if values[num] <= median + max(_STARTUP_SDS * spread, 0.1 * median):
            break
        num += 1
    return num


def last_cut(logs: Floats) -> int:
    """Return where the last phase begins, 0 if there is only one.

    Args:
        logs: (num_values,) logarithms of the values, start-up removed.
    """
    if len(logs) < 2 * _LEAST_LENGTH:
        return 0
    steps = np.diff(logs)
    noise = max(_MAD * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2), _LEAST_SD)
    median = np.median(logs)
    # A spike may not make a phase of its own, so that values are bounded by those beside them.
    smooth = np.median(np.stack([logs, np.roll(logs, 1), np.roll(logs, -1)]), axis=0)
    smooth[0], smooth[-1] = np.clip(logs[[0, -1]], smooth.min(initial=median), smooth.max(initial=median))
    start = 0
    least = max(_LEAST_LENGTH, len(logs) // _LONG)
    while (cut := _best_cut(smooth[start:], noise, least)) is not None:
        start += cut
    return start


def _best_cut(logs: Floats, noise: float, least: int) -> int | None:
    """Return the place at which the means before and behind differ most, or None if no more than by chance."""
    num = len(logs)
    if num < 2 * least:
        return None
    places = np.arange(least, num - least + 1)
    sums = np.cumsum(logs)
    before, behind = sums[places - 1] / places, (sums[-1] - sums[places - 1]) / (num - places)
    strength = np.abs(before - behind) * np.sqrt(places * (num - places) / num) / noise
    best = int(np.argmax(strength))
    jump = abs(float(np.median(logs[: places[best]]) - np.median(logs[places[best] :])))
    # Neighbours are not independent after smoothing, and the best of many places is looked at.
    significant = strength[best] > _CUT_SDS * math.sqrt(1 + math.log(num) / 4)
    return int(places[best]) if significant and jump > _LEAST_CUT else None


def _drift(values: Floats) -> float:
    """Return the change per value between the medians of the two halves, as far as it stands out of the noise."""
    half = len(values) // 2
    if half < _LEAST_LENGTH:
        return 0.0
    early, late = values[:half], values[-half:]
    change = float(np.median(late) - np.median(early))
    chance = _Z * 1.25 * math.sqrt(2 / half) * float(values.std())
    return math.copysign(max(0.0, abs(change) - chance), change) / (len(values) - half)


def total(values: Floats, level: Level, num_total: int, unit: str) -> Estimate:
    """Return the sum of a whole run.

    Args:
        values: (num_seen,) what was seen.
        level: of the values at their end.
        num_total: number of values of the whole run.
        unit: of the values.
    """
    seen, left = float(values.sum()), num_total - len(values)
    rest = rest_of(level, left, len(values))
    return Estimate(seen + rest.mean, seen + rest.low, seen + rest.high, unit, METHOD)


def rest_of(level: Level, left: float, num_seen: int) -> Estimate:
    """Return the sum of the values that are left.

    Args:
        level: what they are like just now.
        left: how many there are.
        num_seen: how many were seen.
    """
    if left <= 0:
        return Estimate(0.0, 0.0, 0.0, "", METHOD)
    ahead = level.drift * (level.num_values + left) / 2
    carried = _CARRIED * ahead * min(1.0, 2 * level.num_values / left)
    mean = left * max(level.mean + carried, 0.2 * level.mean)
    student = 1 + 1.5 / max(1, level.num_values - 1)
    unseen = _UNSEEN * math.sqrt(left / num_seen) + _NOVICE / level.num_values**1.5
    sd = math.sqrt(
        (student * left * level.sd) ** 2 / level.num_values
        + left * level.sd**2
        + (left * level.wander) ** 2
        + (left * level.rare / 2) ** 2
        + (left * carried * (1 - _CARRIED) / _CARRIED) ** 2
        + (mean * unseen) ** 2
    )
    return Estimate(mean, max(0.0, mean - _Z * sd), mean + _Z * sd, "", METHOD)


def first_line(values: Sequence[float], num_total: int) -> float:
    """Return the straight line through the first value: what tools commonly project."""
    return float(values[0]) * num_total
