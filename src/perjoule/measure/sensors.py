"""How good a sensor really is, from its readings: how often it refreshes, what a reading costs, whether it adds up.

Documented figures are often wrong. A counter may stand still, a power sensor may refresh ten times more slowly than its
data sheet says, and readings that come more slowly than the refresh cannot tell how fast that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.core.units import duration
from perjoule.measure.contract import Unavailable
from perjoule.measure.counter import frozen, unwrap

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_MIN_CHANGES = 5
_ENOUGH = 2.5
"""Readings per refresh that it takes to tell how long it is; with fewer, how long it is at most."""
_DOUBT = 0.2
_MIN_SPAN_S = 2.0
_AGREEMENT = (0.8, 1.25)


@dataclass(frozen=True)
class Refresh:
    """How often the value of a sensor changes.

    Args:
        period_s: mean time between two changes.
        low_s: lower end of the 95 % interval of the period; 0 if the readings only bound it from above.
        high_s: upper end.
        num_changes: how many were seen.
    """

    period_s: float
    low_s: float
    high_s: float
    num_changes: int

    @property
    def only_bounded(self) -> bool:
        """Return whether the readings were too slow to tell more than an upper end."""
        return self.low_s == 0


def observed_refresh(t_ns: Ints, raw: Ints) -> Refresh | Unavailable:
    """Return how often a sensor refreshes, as far as its readings show it.

    Args:
        t_ns: (num,) moments of the readings, ascending.
        raw: (num,) what was read.
    """
    changed = np.flatnonzero(np.diff(raw) != 0) + 1
    if len(changed) < _MIN_CHANGES:
        lasted_s = float(t_ns[-1] - t_ns[0]) / 1e9 if len(t_ns) else 0.0
        return Unavailable(f"its value changed {len(changed)} times in {duration(lasted_s)}; {_MIN_CHANGES} are needed")
    polled_s, between_s = float(np.median(np.diff(t_ns))) / 1e9, np.diff(t_ns[changed]) / 1e9
    num, middle_s = len(between_s), float(np.median(between_s))
    error = (1.96 * float(between_s.std()) + 2 * polled_s / math.sqrt(num)) * math.sqrt(num) / float(between_s.sum())
    if middle_s < _ENOUGH * polled_s:  # two refreshes may fit between two readings
        mean_s = float(between_s.mean())
        return Refresh(mean_s, 0.0, mean_s * (1 + error), len(changed))
    # A new value may equal the old one by chance, and two refreshes then look like one: spans are multiples of the
    # period. Which multiple is doubtful near half-way, because each end of a span is known to one reading only; the
    # interval holds what comes out if all doubtful ones are taken for the larger, and for the smaller multiple.
    period_s = _period_s(between_s, middle_s, 0.0)
    low_s, high_s = (_period_s(between_s, period_s, doubt) for doubt in (_DOUBT, -_DOUBT))
    return Refresh(period_s, max(low_s * (1 - error), 0.0), high_s * (1 + error), len(changed))


def _period_s(between_s: Floats, about_s: float, doubt: float) -> float:
    """Return the period of which spans are multiples, given about what it is; more ``doubt``, larger multiples."""
    return float(between_s.sum() / np.maximum(np.rint(between_s / about_s + doubt), 1).sum())


@dataclass(frozen=True)
class ReadCost:
    """How long a reading takes.

    Args:
        median_s: of all readings.
        high_s: 95 % take less.
        worst_s: the longest one.
    """

    median_s: float
    high_s: float
    worst_s: float


def read_cost(before_ns: Ints, after_ns: Ints) -> ReadCost | Unavailable:
    """Return how long readings took.

    Args:
        before_ns: (num,) moments before each.
        after_ns: (num,) moments after it.
    """
    if not len(before_ns):
        return Unavailable("it was never read")
    middle, high, worst = np.quantile((after_ns - before_ns) / 1e9, [0.5, 0.95, 1.0])
    return ReadCost(float(middle), float(high), float(worst))


@dataclass(frozen=True)
class Agreement:
    """An energy counter against the power sensor of the same domain.

    Args:
        ratio: energy counted over energy integrated from the power.
        low: lower end of the 95 % interval of the ratio, as far as refresh and averaging blur the edges.
        high: upper end.
        span_s: time that was compared.
        frozen: whether the counter stood still while there was power.
    """

    ratio: float
    low: float
    high: float
    span_s: float
    frozen: bool

    @property
    def believable(self) -> bool:
        """Return whether the counter may stand for the domain's energy."""
        return not self.frozen and agrees(self.ratio, 1.0)


def counter_against_power(
    counter: tuple[Ints, Ints], power: tuple[Ints, Ints], wraps_at: int | None = None, window_s: float = 0.0
) -> Agreement | Unavailable:
    """Compare the two meters of a domain over the time in which both were read.

    Args:
        counter: (num,) moments in ns and (num,) readings in µJ.
        power: (num_power,) moments in ns and (num_power,) readings in µW.
        wraps_at: value at which the counter starts again.
        window_s: time that a reading of the power averages over.
    """
    (counted_ns, raw), (power_ns, power_uw) = counter, power
    if min(len(raw), len(power_uw)) < 2:
        return Unavailable("there are no readings of both the counter and the power")
    inside = (counted_ns >= power_ns[0]) & (counted_ns <= power_ns[-1])
    counted_s, raw = (counted_ns[inside] - power_ns[0]) / 1e9, raw[inside]
    span_s = float(counted_s[-1] - counted_s[0]) if len(raw) else 0.0
    if span_s < _MIN_SPAN_S:
        return Unavailable(f"counter and power were both read for {duration(span_s)}; {_MIN_SPAN_S:g} s are needed")
    power_s, power_w = (power_ns - power_ns[0]) / 1e9, power_uw / 1e6
    at_ends_j = np.interp(counted_s[[0, -1]], power_s, _integral_j(power_s, power_w))
    integrated_j = float(at_ends_j[1] - at_ends_j[0])
    increase, unknown = unwrap(raw, wraps_at)
    if unknown.any():
        return Unavailable("the counter was reset while it was compared")
    counted_j = float(increase.sum()) / 1e6
    if integrated_j <= 0:
        return Unavailable("the power sensor showed no power")
    counter_error_j = _age_s(counted_ns, raw) * float(power_w.max())
    power_error_j = (_age_s(power_ns, power_uw) + window_s) * float(np.ptp(power_w))
    still = frozen(counted_s, raw, np.interp(counted_s, power_s, power_w))
    return Agreement(
        ratio=counted_j / integrated_j,
        low=max(counted_j - counter_error_j, 0.0) / (integrated_j + power_error_j),
        high=(counted_j + counter_error_j) / max(integrated_j - power_error_j, 1e-9 * integrated_j),
        span_s=span_s,
        frozen=bool(still.any()),
    )


def agrees(counted: float, integrated: float) -> bool:
    """Return whether a counter's energy is near enough to the integral of the power to be believed.

    Args:
        counted: energy by the counter.
        integrated: energy by the power, in the same unit.
    """
    return integrated <= 0 or _AGREEMENT[0] <= counted / integrated <= _AGREEMENT[1]


def _integral_j(t_s: Floats, power_w: Floats) -> Floats:
    """Return the energy since the first reading."""
    found: Floats = np.concatenate([[0.0], np.cumsum((power_w[1:] + power_w[:-1]) / 2 * np.diff(t_s))])
    return found


def _age_s(t_ns: Ints, raw: Ints) -> float:
    """Return how old a reading may be: the refresh of its sensor, or the time between two readings."""
    refresh = observed_refresh(t_ns, raw)
    return float(np.median(np.diff(t_ns))) / 1e9 if isinstance(refresh, Unavailable) else refresh.high_s
