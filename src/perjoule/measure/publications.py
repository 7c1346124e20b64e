"""When a sensor took a new value, from readings that were made at other moments.

A sensor that is refreshed every 100 ms and read every 100 ms shows each value up to 100 ms late. Between a reading and
the one before it lies the moment of the change: a bracket. If the refresh is periodic, all brackets together leave
little room for its period and its offset, and every moment is known to a few milliseconds. If not, the bracket stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MIN_CHANGES = 12
_MAX_READINGS = 6000
"""More than these are not needed to find the period."""
_BINS = 250
"""Parts of a period among which its offset is sought."""
_MIN_AGREEMENT = 0.9
_MAX_CANDIDATES = 1500


@dataclass(frozen=True)
class Publications:
    """The values of a sensor in the order in which it took them.

    Args:
        t_s: (num_values,) when each value appeared, seconds.
        width_s: length of time within which it appeared, centred at ``t_s``.
        values: (num_values,) the values.
        period_s: of the refresh; None if it was not found to be periodic, or is faster than the readings.
    """

    t_s: Floats
    width_s: float
    values: Floats
    period_s: float | None


def find_publications(before_s: Floats, after_s: Floats, values: Floats, resolution_s: float) -> Publications:
    """Return when a sensor took its values.

    Args:
        before_s: (num_readings,) moments before each reading, ascending seconds.
        after_s: (num_readings,) moments after it.
        values: (num_readings,) what was read.
        resolution_s: the documented refresh.
    """
    changed = np.diff(values) != 0
    every_s = float(np.median(np.diff(before_s))) if len(before_s) > 1 else 0.0
    middle_s = (before_s + after_s) / 2
    found = None
    if min(changed.sum(), (~changed).sum()) >= _MIN_CHANGES:
        found = _find_period(middle_s[:_MAX_READINGS], changed[: _MAX_READINGS - 1], resolution_s)
        if found is not None and (~changed).mean() < 0.08 and not 0.75 < found[0] / resolution_s < 1.35:
            found = None  # few equal readings do not tell one period from another
    if found is None and (resolution_s <= every_s or not changed.any()):
        # Faster than the readings: each of them shows the last refresh, whenever within one that was.
        width_s = resolution_s + float(np.median(after_s - before_s)) if len(values) else resolution_s
        return Publications(middle_s - resolution_s / 2, width_s, values, None)
    if found is None:
        rows = np.flatnonzero(changed) + 1
        low_s = np.maximum(before_s[rows - 1], after_s[rows] - 1.5 * resolution_s)
        return Publications((low_s + after_s[rows]) / 2, float(np.median(after_s[rows] - low_s)), values[rows], None)
    period_s, offset_s, width_s = found
    position = (middle_s - offset_s) / period_s
    # A reading that is closer to a change than the change is known may be on either side of it.
    sure = np.abs(position - np.round(position)) * period_s > 1.5 * width_s
    number = np.floor(position[sure])
    first = np.diff(number, prepend=-np.inf) > 0
    return Publications(offset_s + number[first] * period_s, width_s, values[sure][first], period_s)


def _find_period(t_s: Floats, changed: NDArray[np.bool_], resolution_s: float) -> tuple[float, float, float] | None:
    """Return (period, offset, width of the offset) of a refresh that explains which readings differ; None if none does.

    Between two readings that differ lies a change, between two equal ones lies none. On a circle with the length of the
    period the stretch between two readings is an arc: the offset lies in every arc of the first kind and in none of
    the second. Periods are first compared on a short span, where few are needed, then on longer and longer ones.

    Args:
        t_s: (num_readings,) moments of the readings.
        changed: (num_readings - 1,) whether a reading differs from the one before.
        resolution_s: the documented refresh.
    """
    gaps = np.diff(t_s[1:][changed])
    guesses = [resolution_s] if resolution_s > 0 else []
    low_s, high_s = 0.7 * min([*guesses, float(np.median(gaps))]), 1.3 * max([*guesses, float(np.median(gaps))])
    num = max(int(np.searchsorted(t_s, t_s[0] + 20 * high_s)), 16)
    step_s = high_s / _BINS * high_s / max(float(t_s[:num][-1] - t_s[0]), high_s)
    periods = np.arange(low_s, high_s + step_s, step_s)
    while True:
        wrong = [_wrong(t_s[:num], changed[: num - 1], period_s) for period_s in periods]
        least = np.array([counts.min() for counts in wrong])
        if num >= len(t_s):
            # Aliases explain the readings as well now and then; the documented refresh decides.
            close = least <= least.min() + max(1.0, 0.01 * num)
            group = close & (np.abs(periods - resolution_s) <= np.abs(periods - resolution_s)[close].min() + 9 * step_s)
            best = int(np.argmin(np.where(group, least, np.inf)))
            return _offset(t_s, float(periods[best]), wrong[best], int(changed.sum()))
        order = np.argsort(least, kind="stable")[:_MAX_CANDIDATES]
        good = periods[order[least[order] <= least.min() + max(1.0, 0.02 * num)]]
        periods = np.unique(good[:, None] + step_s / 3 * np.arange(-2, 3))
        step_s, num = step_s / 3, num * 3


def _wrong(t_s: Floats, changed: NDArray[np.bool_], period_s: float) -> Floats:
    """Return for each part of a period how many pairs of readings contradict an offset there."""
    length = np.diff(t_s)
    telling = length < period_s
    begin = np.floor((t_s[:-1][telling] % period_s) / period_s * _BINS).astype(np.int64)
    end = np.floor((t_s[1:][telling] % period_s) / period_s * _BINS).astype(np.int64)
    # A differing pair is contradicted by an offset outside its arc, an equal one by an offset inside.
    sign = np.where(changed[telling], -1.0, 1.0)
    steps = np.bincount(begin, sign, _BINS + 1) - np.bincount(end, sign, _BINS + 1)
    inside = np.cumsum(steps)[:_BINS] + float(sign[end < begin].sum())
    # No change within a whole period cannot be.
    wrong: Floats = inside + int(changed[telling].sum()) + int((~changed[~telling]).sum())
    return wrong


def _offset(t_s: Floats, period_s: float, wrong: Floats, num_changes: int) -> tuple[float, float, float] | None:
    """Return (period, offset, width) if nearly all pairs agree on an offset."""
    if wrong.min() > (1 - _MIN_AGREEMENT) * num_changes + 1:
        return None
    good = wrong <= wrong.min() + max(1.0, 0.005 * num_changes, 2 * np.sqrt(wrong.min()))
    # Turned so that the best part is in the middle, the good ones around it are one stretch.
    best = int(np.argmin(wrong))
    turned = np.roll(good, _BINS // 2 - best)
    left = right = _BINS // 2
    while left > 0 and turned[left - 1]:
        left -= 1
    while right < _BINS - 1 and turned[right + 1]:
        right += 1
    middle = best + (left + right) / 2 - _BINS // 2 + 0.5
    first = np.floor(t_s[0] / period_s) * period_s
    return period_s, float(first + middle / _BINS * period_s), (right - left + 1) / _BINS * period_s
