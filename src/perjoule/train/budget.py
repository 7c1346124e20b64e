"""Budgets: a run that ends when it has used so much energy, or caused so much carbon.

The leading rank reads what the meters have counted about five times a second, at a moment when it waits for nothing;
its wish to stop reaches the others with the sums that every step exchanges anyway, as a signal does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from perjoule.core.units import J_PER_KWH, si
from perjoule.measure.contract import Unavailable

READ_EVERY_S = 0.2
Reading = Callable[[], float | Unavailable]


@dataclass
class Budget:
    """What a run may use of one quantity.

    Args:
        limit: in the base unit.
        unit: ``J`` or ``gCO2e``.
        read: returns what was used so far, over all segments, or why that is not known just now.
        sources: where the figure comes from, in words: ``measured: gpu-…, modelled: cpu``.
    """

    limit: float
    unit: str
    read: Reading
    sources: str
    used: float = 0.0
    """What was used when it was last read. It never falls."""
    _next_s: float = 0.0

    def used_up(self) -> str | None:
        """Return why the run is over, or None."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + READ_EVERY_S
            used = self.read()
            if not isinstance(used, Unavailable):
                self.used = max(self.used, used)
        if self.used < self.limit:
            return None
        return f"reached {si(self.limit, self.unit)} ({self.sources})"

    @property
    def fraction(self) -> float:
        """Return how much of it was used when it was last read, from 0."""
        return self.used / self.limit


@dataclass
class Emitted:
    """Turns energy into carbon as it is used: every increment counts with the intensity of its moment.

    Args:
        energy_j: returns the joules used so far.
        g_per_kwh: returns the intensity in force, PUE included.
    """

    energy_j: Reading
    g_per_kwh: Callable[[], float]
    _counted_j: float = 0.0
    _gco2e: float = 0.0

    def read(self) -> float | Unavailable:
        """Return the grams of CO2 equivalent so far."""
        used = self.energy_j()
        if isinstance(used, Unavailable):
            return used
        self._gco2e += (used - self._counted_j) / J_PER_KWH * self.g_per_kwh()
        self._counted_j = used
        return self._gco2e
