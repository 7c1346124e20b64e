"""From the readings of one meter to the energy of its domain, and the spans in which that energy is not known.

A counter's energy is the difference of its readings, wraps undone. A power sensor's is the trapezoid under *all* of its
readings, equal ones among them. Energy is cumulative and in whole microjoules, so that every difference is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perjoule.measure.contract import Form, Sensor
from perjoule.measure.counter import unwrap

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_S_PER_NS = 1e-9


@dataclass(frozen=True)
class Series:
    """The readings of one meter, of all samplers that read it one after another.

    Args:
        sensor: what was read.
        before_ns: (num,) moments before each reading, CLOCK_MONOTONIC.
        after_ns: (num,) moments after it.
        raw: (num,) readings in the sensor's unit.
        energy_uj: (num,) energy since the first reading.
        known: (num - 1,) whether the span between two readings may be told apart by phase; False where readings are
            missing or the sampler was started anew (the energy stays in the total), and where the counter was reset.
        lost: (num - 1,) spans of which even the energy is not known: a counter that was reset within.
        rate_hz: readings per second that were asked for.
    """

    sensor: Sensor
    before_ns: Ints
    after_ns: Ints
    raw: Ints
    energy_uj: Ints
    known: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    rate_hz: float

    @property
    def t_ns(self) -> Ints:
        """Return the moments of the readings."""
        return self.before_ns + (self.after_ns - self.before_ns) // 2

    def __len__(self) -> int:
        return len(self.raw)

    def since(self, t_ns: int) -> Series:
        """Return the readings from a moment on."""
        first = int(np.searchsorted(self.t_ns, t_ns))
        if first == 0:
            return self
        return replace(
            self,
            before_ns=self.before_ns[first:],
            after_ns=self.after_ns[first:],
            raw=self.raw[first:],
            energy_uj=self.energy_uj[first:] - (self.energy_uj[first] if first < len(self) else 0),
            known=self.known[first:],
            lost=self.lost[first:],
        )


def join(sensor: Sensor, pieces: Sequence[tuple[Ints, Ints, Ints]], rate_hz: float) -> Series:
    """Join the readings that several samplers made of one meter.

    Args:
        sensor: what was read.
        pieces: (before_ns, after_ns, raw) of each sampler, in order.
        rate_hz: readings per second that were asked for.
    """
    before, after, raw = (np.concatenate(parts).astype(np.int64) for parts in zip(*pieces, strict=True))
    seams = np.cumsum([len(piece[2]) for piece in pieces])[:-1]
    t_ns = before + (after - before) // 2
    lasted_ns = np.diff(t_ns)
    lost = np.zeros(max(len(raw) - 1, 0), np.bool_)
    if sensor.form == Form.COUNTER:
        increase, lost = unwrap(raw, sensor.wraps_at, lasted_ns * _S_PER_NS, sensor.limit_w)
    else:
        increase = np.rint((raw[1:] + raw[:-1]) / 2 * (lasted_ns * _S_PER_NS)).astype(np.int64)
    inner = seams[(seams > 0) & (seams < len(raw))]
    if sensor.modelled and sensor.form == Form.COUNTER:  # a model begins at 0 with each sampler
        lost[inner - 1] = True
        increase = np.where(lost, 0, increase)
    known = ~lost & (lasted_ns <= 1e9 * max(5 / rate_hz, 1.0))
    known[inner - 1] = False
    energy = np.concatenate([np.zeros(1, np.int64), np.cumsum(increase)]) if len(raw) else np.zeros(0, np.int64)
    return Series(sensor, before, after, raw, energy, known, lost, rate_hz)


def energy_at(series: Series, t_ns: Ints) -> Floats:
    """Return the energy since the first reading at given moments, µJ, between readings on a straight line."""
    found: Floats = np.interp(t_ns, series.t_ns, series.energy_uj.astype(np.float64))
    return found
