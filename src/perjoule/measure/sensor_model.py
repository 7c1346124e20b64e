"""How a sensor sees power: late, averaged over a window, smoothed; and what share each phase has in a reading."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MAX_CELLS = 600_000


@dataclass(frozen=True)
class Observations:
    """Readings, each with what it covers.

    Args:
        end_s: (num,) moment at which what it covers ends, lag apart; seconds.
        value_w: (num,) mean power, W.
        span_s: (num,) length of time it covers; None for a power sensor, whose window is part of the kernel.
        width_s: length of time within which ``end_s`` lies.
        refresh_s: of the sensor.
        window_s: averaging window as documented; None if it is not known.
    """

    end_s: Floats
    value_w: Floats
    span_s: Floats | None
    width_s: float
    refresh_s: float
    window_s: float | None


@dataclass(frozen=True)
class Kernel:
    """How a sensor sees power: after ``lag_s``, averaged over ``window_s``, smoothed with ``tau_s``."""

    lag_s: float
    window_s: float
    tau_s: float


class Design:
    """Shares of the phases in what a sensor sees, for any kernel, from their occupancy on a fine grid.

    Args:
        occupied: (num_phases, num_cells) share of each cell that each phase holds.
        start_s: beginning of the first cell.
        cell_s: length of a cell.
        longest_s: the longest time constant that will be asked for.
    """

    def __init__(self, occupied: Floats, start_s: float, cell_s: float, longest_s: float) -> None:
        self.start_s, self.cell_s = start_s, cell_s
        self._ladder = [longest_s * share for share in (0.0, 0.07, 0.14, 0.2, 0.27, 0.34, 0.4, 0.5, 0.67, 1.0)]
        self._occupied = occupied
        self._sums: dict[float, Floats] = {}

    def shares(self, seen: Observations, rows: NDArray[np.int64], kernel: Kernel) -> Floats:
        """Return (num_rows, num_phases) shares."""
        end_s = seen.end_s[rows] - kernel.lag_s
        span_s = kernel.window_s if seen.span_s is None else seen.span_s[rows]
        span_s = np.maximum(span_s, self.cell_s)
        # The moment is known to within ``width_s`` only: the mean over it is what can be expected of the reading.
        offsets = [0.0] if seen.width_s < 2 * self.cell_s else list(seen.width_s * (np.arange(5) - 2) / 5)
        total: Floats = np.zeros((len(self._occupied), len(rows)))
        for weight, sums in self._smoothed(kernel.tau_s):
            for by in offsets:
                total += weight * (self._at(sums, end_s + by) - self._at(sums, end_s + by - span_s))
        shares: Floats = (total / (len(offsets) * span_s)).T
        return shares

    def _at(self, sums: Floats, t_s: Floats) -> Floats:
        """Return the (num_phases, num) integrals up to some moments."""
        position = np.clip((t_s - self.start_s) / self.cell_s, 0, sums.shape[1] - 1.001)
        cell = position.astype(np.int64)
        part = position - cell
        found: Floats = sums[:, cell] * (1 - part) + sums[:, cell + 1] * part
        return found

    def _smoothed(self, tau_s: float) -> list[tuple[float, Floats]]:
        """Return weights and (num_phases, num_cells + 1) integrals of the occupancy, smoothed by two rungs of a ladder.

        A time constant between two rungs is their mixture, so that smoothing costs the same for any number of kernels.
        """
        rung = int(np.clip(np.searchsorted(self._ladder, tau_s, side="right") - 1, 0, len(self._ladder) - 2))
        low_s, high_s = self._ladder[rung], self._ladder[rung + 1]
        part = min(max((tau_s - low_s) / (high_s - low_s), 0.0), 1.0)
        parts = [(1 - part, low_s), (part, high_s)]
        return [(weight, self._rung(rung_s)) for weight, rung_s in parts if weight > 0]

    def _rung(self, tau_s: float) -> Floats:
        if tau_s not in self._sums:
            smooth = self._occupied if tau_s < self.cell_s else _exponential(self._occupied, tau_s / self.cell_s)
            zero = np.zeros((len(smooth), 1))
            self._sums[tau_s] = np.concatenate([zero, np.cumsum(smooth, axis=1) * self.cell_s], axis=1)
        return self._sums[tau_s]


def lay_out(
    seen: Observations,
    spent_s: Callable[[Floats], Floats],
    shortest_s: float,
    lags: Floats,
    window_s: float,
    tau_s: float,
) -> Design:
    """Lay the grid over everything that any kernel can see."""
    start_s = float(seen.end_s[0] - lags[-1]) - window_s - 6 * tau_s - seen.width_s
    if seen.span_s is not None:
        start_s -= float(seen.span_s.max())
    stop_s = float(seen.end_s[-1] - lags[0]) + seen.width_s
    cell_s = max(shortest_s / 8, (stop_s - start_s) / _MAX_CELLS)
    edges: Floats = start_s + cell_s * np.arange(math.ceil((stop_s - start_s) / cell_s) + 1, dtype=np.float64)
    return Design(np.diff(spent_s(edges), axis=1) / cell_s, start_s, cell_s, tau_s)


def _exponential(occupied: Floats, cells: float) -> Floats:
    """Smooth along the second axis with an exponential of a time constant of ``cells`` cells."""
    num = occupied.shape[1]
    reach = min(num, math.ceil(12 * cells))
    weights = np.exp(-np.arange(reach) / cells)
    weights /= weights.sum()
    size = 1 << (num + reach - 1).bit_length()
    # Before the grid everything was as in its first cell.
    padded = occupied - occupied[:, :1]
    smooth: Floats = np.fft.irfft(np.fft.rfft(padded, size) * np.fft.rfft(weights, size), size)[:, :num]
    return smooth + occupied[:, :1]
