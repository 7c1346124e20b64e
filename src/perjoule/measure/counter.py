"""Energy counters made monotone: a wrap is undone, a reset is marked, a counter that stands still is found out.

A counter goes down for two reasons. It *wraps* when its register is full: the energy between the readings is the
difference modulo the range. It is *reset* when a driver is loaded again or the machine slept: how much was used in
between is unknown, and is neither negative nor nothing. Only the size of the step tells the two apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ABOVE_LIMIT = 2.0
"""Sensors overshoot a power limit for moments; a step of more than this times the limit is no wrap."""
_REFRESH_S = 0.1
"""A counter may publish the energy of one refresh more than the time between two readings holds."""


def unwrap(
    raw: Ints, wraps_at: int | None, lasted_s: Floats | None = None, limit_w: float | None = None
) -> tuple[Ints, Bools]:
    """Return the energy between successive readings, and where it is unknown.

    A step down is a wrap if the energy that this implies is plausible: at most what the domain can use in the time
    between the readings if that is given, at most half the range otherwise.

    Args:
        raw: (num,) readings of a counter, µJ.
        wraps_at: value at which it starts again from 0; None if it does not.
        lasted_s: (num - 1,) seconds between the readings.
        limit_w: power that the domain cannot exceed.

    Returns:
        (num - 1,) increases in µJ, never negative and 0 where unknown; and (num - 1,) whether the increase is unknown:
        a reset, or a span so long that the counter may have gone round more than once.
    """
    steps = np.diff(raw)
    resets = steps < 0
    if wraps_at is None:
        return np.where(resets, 0, steps), resets
    most = np.full(len(steps), wraps_at / 2)
    unknown = np.zeros(len(steps), np.bool_)
    if lasted_s is not None and limit_w is not None:
        most = np.minimum(_ABOVE_LIMIT * 1e6 * limit_w * (lasted_s + _REFRESH_S), wraps_at)
        unknown = 1e6 * limit_w * lasted_s >= wraps_at
    wrapped = steps + wraps_at
    unknown |= resets & ((wrapped < 0) | (wrapped > most))
    return np.where(unknown, 0, np.where(resets, wrapped, steps)), unknown


def frozen(t_s: Floats, raw: Ints, power_w: Floats, patience_s: float = 1.0) -> Bools:
    """Return where a counter stands still although the domain draws power.

    Some devices have a counter that is never, or only at times, written; its zeros would pass for measured energy.

    Args:
        t_s: (num,) moments of the readings, ascending.
        raw: (num,) readings of the counter.
        power_w: (num,) readings of a power sensor of the same domain at these moments.
        patience_s: how long a counter that works may show the same value; ten of the slowest known refreshes.

    Returns:
        (num - 1,) whether the span between two readings belongs to such a stretch.
    """
    still = np.diff(raw) == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]])))
    found = np.zeros(len(still), np.bool_)
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        drawn_j = float(np.sum(power_w[first:last] * np.diff(t_s[first : last + 1])))
        found[first:last] = t_s[last] - t_s[first] > patience_s and drawn_j > 0
    return found
