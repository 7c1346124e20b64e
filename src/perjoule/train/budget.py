"""Budgets: a run that ends when it has used so much energy, or caused so much carbon.

The leading rank reads what the meters have counted about five times a second, at a moment when it waits for nothing;
its wish to stop reaches the others with the sums that every step exchanges anyway, as a signal does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from perjoule.core.units import J_PER_KWH, si
from perjoule.measure.contract import Unavailable

READ_EVERY_S = 0.2
_RECENT_S = 1.0
"""The power of so long a time stands for that of the seconds to come, if it is above the mean."""
_LEAST_WATCHED_S = 0.4
Reading = Callable[[], float | Unavailable]


@dataclass
class Budget:
    """What a run may use of one quantity.

    Args:
        limit: in the base unit.
        unit: ``J`` or ``gCO2e``.
        read: returns what was used so far, over all segments, or why that is not known just now.
        sources: where the figure comes from, in words: ``measured: gpu-…, modelled: cpu``.
        lag_s: how old a reading may be when it is read.
    """

    limit: float
    unit: str
    read: Reading
    sources: str
    lag_s: float = 0.0
    used: float = 0.0
    """What was used when it was last read. It never falls."""
    _next_s: float = 0.0

    def __post_init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque()
        self._first: tuple[float, float] | None = None
        self._lock = threading.Lock()

    def used_up(self, ahead_s: float = 0.0) -> str | None:
        """Return why the run is over, or None.

        Args:
            ahead_s: what is still to be done costs as much as so many seconds at the present rate.
        """
        with self._lock:
            self._refresh(time.monotonic())
            if self._expected(ahead_s) < self.limit:
                return None
            limit = si(self.limit, self.unit)
            if self.used >= self.limit:
                return f"reached {limit} ({self.sources})"
            return f"{limit} leave no room for another step ({self.sources})"

    def remaining_s(self) -> float | None:
        """Return how long it lasts at the present rate; None if the rate is not known yet."""
        with self._lock:
            self._refresh(time.monotonic())
            rate = self._rate()
            return None if rate is None else max(0.0, (self.limit - self._expected(0.0)) / rate)

    @property
    def fraction(self) -> float:
        """Return how much of it was used when it was last read, from 0."""
        return self.used / self.limit

    def _refresh(self, now_s: float) -> None:
        """Read, if it is time to."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + READ_EVERY_S
        used = self.read()
        if isinstance(used, Unavailable):
            return
        self.used = max(self.used, used)
        self._first = self._first or (now_s, self.used)
        self._readings.append((now_s, self.used))
        while len(self._readings) > 2 and now_s - self._readings[1][0] >= _RECENT_S:
            self._readings.popleft()

    def _rate(self) -> float | None:
        """Return what a second uses: the mean so far, or that of the last second if it is higher."""
        if self._first is None:
            return None
        now_s, used = self._readings[-1]
        rates = [
            (used - before) / (now_s - then_s)
            for then_s, before in (self._first, self._readings[0])
            if now_s - then_s >= _LEAST_WATCHED_S
        ]
        return max(rates, default=0.0) or None

    def _expected(self, ahead_s: float) -> float:
        """Return what will have been used after some seconds; what was read lies behind already."""
        if not self._readings:
            return self.used
        age_s = time.monotonic() - self._readings[-1][0] + self.lag_s
        return self.used + (self._rate() or 0.0) * (age_s + ahead_s)


@dataclass
class Emitted:
    """Turns energy into carbon as it is used: every increment counts with the intensity of its moment.

    Args:
        energy_j: returns the joules used so far.
        g_per_kwh: returns the intensity in force, PUE included.
        before_j: joules of earlier segments, which were used at other intensities.
        before_g: what they emitted.
    """

    energy_j: Reading
    g_per_kwh: Callable[[], float]
    before_j: float = 0.0
    before_g: float = 0.0

    def read(self) -> float | Unavailable:
        """Return the grams of CO2 equivalent so far."""
        used = self.energy_j()
        if isinstance(used, Unavailable):
            return used
        self.before_g += max(0.0, used - self.before_j) / J_PER_KWH * self.g_per_kwh()
        self.before_j = max(used, self.before_j)
        return self.before_g
