"""The rest of a run from its steps or epochs so far: robust, aware of phases, with an interval that shrinks.

1. *Start-up*: leading values far above what follows (graph tracing, caches that fill) are paid once and not projected.
2. *Phases*: the series is cut where its level changes for good (head to fine-tune, a longer sequence); only the last
   phase is projected. Cuts are sought by binary segmentation of the logarithms (Scott & Knott 1974; the threshold is a
   multiple of the noise of first differences, so that a slow drift is no noise).
3. *Rate*: the mean of that phase, so that work that comes back counts as often as it came. A single outlier counts
   half until there is a second one, and widens the interval by as much.
4. *Interval*: how far the mean of ``m`` values to come lies from that of the ``k`` of the phase. Step times are not
   independent: neighbours and clocks move them on every scale. As for clocks (Allan 1966), the variance between
   adjacent blocks is looked at for blocks of every length; white noise falls with the length, and what does not fall is
   flicker, whose mean wanders with the logarithm of the horizon::

       variance = white · (1/k + 1/m) + flicker · (1 + log(1 + m/k))

   All values count for it, earlier phases too: what changed once may change again, the less so the longer ago. A short
   series knows its flicker badly, so that a prior of a few degrees of freedom takes part, and the quantile is
   Student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perjoule.core.errors import DataError

Floats = NDArray[np.float64]
_MAD = 1.4826  # from the median absolute deviation to a standard deviation
_STARTUP_SDS, _OUTLIER_SDS, _CUT_SDS = 6.0, 8.0, 4.5
_LEAST_SD = 0.005
"""Relative noise that is assumed at least: clocks and meters are not better."""
_LEAST_CUT = 0.1
"""A change of the level by less is no phase: it is more often a neighbour's, and goes again."""
_LONG = 3
"""A phase is at least this part of what was seen: a neighbour's burst of work is shorter."""
_SPIKE = 0.7
"""A single outlier counts by at most so much of the level; one that is larger is taken to be rarer."""
_BEFORE, _BEHIND = 3, 5
"""Values that there must be on both sides of a cut, at least."""
_WHITE, _WHITE_FREEDOM = 0.03, 2
_FLICKER, _FLICKER_FREEDOM = 0.02, 3
"""Priors of the relative standard deviations, with the number of observations that they count for (docs/log.md)."""
_FEW_BLOCKS = 9
"""Flicker is looked for in so few blocks, that is, on the scales that are nearest to the horizon."""
_FIRST = (0.1, 0.7, 1.1)
"""A common step over the first one, low, mean and high: the first traces, fills caches, or compiles."""
_SECOND = (0.5, 1.0, 1.2)
"""The same over the second one, which may be slow as well."""
_WIDEST = 3.0
"""Largest half width of an interval in logarithms, a factor of 20."""


class Span(NamedTuple):
    """A figure with its 90 % interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> Span:
        """Return the figure in another unit."""
        return Span(self.mean * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Level:
    """What the values are like just now.

    Args:
        mean: the rate: mean of the last phase.
        white: relative standard deviation of single values around their neighbours.
        flicker: relative standard deviation of what does not average out.
        freedom: degrees of freedom of ``flicker``.
        rare: share of the mean that half of a single outlier is.
        start: where the last phase begins, behind the start-up.
        num_startup: leading values that are start-up.
        num_values: values that the rate is the mean of.
    """

    mean: float
    white: float
    flicker: float
    freedom: float
    rare: float
    start: int
    num_startup: int
    num_values: int


def find_level(values: Floats) -> Level:
    """Return what the values are like at their end.

    Args:
        values: (num_values,) positive.
    """
    num_startup = count_startup(values)
    running = values[num_startup:]
    start = last_cut(np.log(running))
    phase = running[start:]
    median = float(np.median(phase))
    spread = max(_MAD * float(np.median(np.abs(phase - median))), _LEAST_SD * median)
    rare = shift = 0.0
    if (phase > median + _OUTLIER_SDS * spread).sum() == 1:
        place = int(np.argmax(phase))
        rare = (float(phase[place]) / median - 1) / (2 * len(phase))
        shift = min(rare, _SPIKE / (2 * len(phase)))
        running = running.copy()
        running[start + place] = median
        phase = running[start:]
    mean = float(phase.mean())
    white, flicker, freedom = _noise(running / mean)
    return Level(mean * (1 + shift), white, flicker, freedom, rare, start, num_startup, len(phase))


def _noise(values: Floats) -> tuple[float, float, float]:
    """Return the white noise, the flicker, and the degrees of freedom of the latter.

    Args:
        values: (num_values,) relative to their level.
    """
    white = (_WHITE_FREEDOM * _WHITE**2 + float((np.diff(values) ** 2).sum()) / 2) / (_WHITE_FREEDOM + len(values) - 1)
    seen, freedom = 0.0, float(_FLICKER_FREEDOM)
    length = len(values) // 2
    while length >= 2 and (num := len(values) // length) <= _FEW_BLOCKS:
        means = values[-num * length :].reshape(num, length).mean(axis=1)
        variance = float((np.diff(means) ** 2).mean()) / 2
        weight = (num - 1) / 2  # the blocks of one length are parts of those of the next
        seen += weight * (variance - white / length)
        freedom += weight
        length //= 2
    flicker = (_FLICKER_FREEDOM * _FLICKER**2 + max(0.0, seen)) / freedom
    return math.sqrt(max(white, _LEAST_SD**2)), math.sqrt(flicker), freedom


def rest_of(level: Level, left: float) -> Span:
    """Return the sum of the values that are left.

    Args:
        level: what they are like just now.
        left: how many there are.
    """
    if left <= 0:
        return Span(0.0, 0.0, 0.0)
    mean, seen = left * level.mean, level.num_values
    if seen == 1:
        low, middle, high = _FIRST if not level.num_startup else _SECOND
        return Span(mean * middle, mean * low, mean * high)
    white = level.white**2 * (1 / seen + 1 / max(left, 1.0)) + level.rare**2
    flicker = level.flicker**2 * (1 + math.log1p(left / seen))
    # Of a sum of variances, after Satterthwaite (1946).
    freedom = (white + flicker) ** 2 / (white**2 / (seen + _WHITE_FREEDOM - 1) + flicker**2 / level.freedom)
    half = min(_WIDEST, student(freedom) * math.sqrt(white + flicker))
    return Span(mean, mean * math.exp(-half), mean * math.exp(half))


def student(freedom: float) -> float:
    """Return the 95 % quantile of Student's distribution (Fisher & Cornish 1960), from 3 degrees of freedom on."""
    z = 1.6449
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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
    if len(logs) < _BEFORE + _BEHIND:
        return 0
    steps = np.diff(logs)
    noise = max(_MAD * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2), _LEAST_SD)
    median = np.median(logs)
    # A spike may not make a phase of its own, so that values are bounded by those beside them.
    smooth = np.median(np.stack([logs, np.roll(logs, 1), np.roll(logs, -1)]), axis=0)
    smooth[0], smooth[-1] = np.clip(logs[[0, -1]], smooth.min(initial=median), smooth.max(initial=median))
    start = 0
    behind = max(_BEHIND, len(logs) // _LONG)
    while (cut := _best_cut(smooth[start:], noise, behind)) is not None:
        start += cut
    return start


def _best_cut(logs: Floats, noise: float, least_behind: int) -> int | None:
    """Return the place at which the means before and behind differ most, or None if no more than by chance."""
    num = len(logs)
    if num < _BEFORE + least_behind:
        return None
    places = np.arange(_BEFORE, num - least_behind + 1)
    sums = np.cumsum(logs)
    before, behind = sums[places - 1] / places, (sums[-1] - sums[places - 1]) / (num - places)
    strength = np.abs(before - behind) * np.sqrt(places * (num - places) / num) / noise
    best = int(np.argmax(strength))
    jump = abs(float(np.median(logs[: places[best]]) - np.median(logs[places[best] :])))
    # Neighbours are not independent after smoothing, and the best of many places is looked at.
    significant = strength[best] > _CUT_SDS * math.sqrt(1 + math.log(num) / 4)
    return int(places[best]) if significant and jump > _LEAST_CUT else None


def forecast(values: ArrayLike, num_total: int) -> Span:
    """Estimate the sum of a whole series, such as the seconds of a run, from its first values.

    Args:
        values: (num_seen,) of each step or epoch so far.
        num_total: steps or epochs of the whole run.

    Raises:
        DataError: if nothing was seen, a value is not above 0, or there are more than ``num_total``.
    """
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"a series must be a list of at least one number, not of shape {array.shape}")
    if not (np.isfinite(array).all() and (array > 0).all()):
        place = int(np.argmax(~(np.isfinite(array) & (array > 0))))
        raise DataError(f"the values of a series must be above 0: number {place + 1} is {array[place]:g}")
    if num_total < len(array):
        raise DataError(f"a run of {num_total} cannot have {len(array)} values")
    rest, seen = rest_of(find_level(array), num_total - len(array)), float(array.sum())
    return Span(seen + rest.mean, seen + rest.low, seen + rest.high)


def first_line(values: Sequence[float], num_total: int) -> float:
    """Return the straight line through the first value: what tools commonly project."""
    return float(values[0]) * num_total
