"""Tier B: the power of every phase from bursts in which it was repeated for seconds.

A burst repeats one phase, or a few that need one another, until the sensor shows a plateau. With x the shares of the
phases in the plateaus and y their mean powers, P solves ``y = x P``, P ≥ 0, weighted by what each plateau scatters.
Nothing is assumed of the sensor but that a plateau longer than its memory is read rightly on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.measure.contract import Form
from perjoule.measure.publications import find_publications
from perjoule.measure.readings import Series
from perjoule.measure.regression import nonnegative

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_MIN_READINGS = 8
_LEAST_SCATTER = 0.002
"""A plateau is never taken to be known better than this, relative to its mean."""


@dataclass(frozen=True)
class Plateau:
    """The steady part of one burst.

    Args:
        begin_ns: its first moment.
        end_ns: its last moment.
        power_w: mean power.
        error_w: standard error of the mean, drift included.
        num: readings.
    """

    begin_ns: int
    end_ns: int
    power_w: float
    error_w: float
    num: int


@dataclass(frozen=True)
class Calibration:
    """Powers of phases in bursts.

    Args:
        power_w: (num_phases,) W.
        error_w: (num_phases,) standard errors.
        num_bursts: how many plateaus they come from.
        misfit: root mean square of what the powers leave of the plateaus, relative.
    """

    power_w: Floats
    error_w: Floats
    num_bursts: int
    misfit: float


def published(series: Series) -> tuple[Ints, Ints]:
    """Return when the sensor took its values, as far as the readings tell, and the values: energy in µJ or power in µW.

    A reading shows a value that is up to a refresh old. With the moments of the refresh itself the slope of a counter
    is known several times better.
    """
    values = series.energy_uj if series.sensor.form == Form.COUNTER else series.raw
    if len(values) < 2:
        return series.t_ns, values
    begun_ns = int(series.before_ns[0])
    before_s, after_s = (series.before_ns - begun_ns) / 1e9, (series.after_ns - begun_ns) / 1e9
    found = find_publications(before_s, after_s, values.astype(np.float64), series.sensor.resolution_s)
    if found.period_s is not None:
        return begun_ns + np.rint(found.t_s * 1e9).astype(np.int64), found.values.astype(np.int64)
    # A value that was read twice is one value; the moment it was first read is the closest to its own.
    new = np.insert(np.diff(values) != 0, 0, True)
    return series.t_ns[new], values[new]


def plateau(form: Form, shown: tuple[Ints, Ints], begin_ns: int, end_ns: int, memory_s: float) -> Plateau | None:
    """Return the steady part of a burst, or None if it is too short.

    Args:
        form: what the values are.
        shown: moments and values of the sensor, from :func:`published`.
        begin_ns: begin of the burst.
        end_ns: its end.
        memory_s: how far back a reading looks: lag, refresh and window.
    """
    skip_ns = int(memory_s * 1e9)
    inside = (shown[0] >= begin_ns + skip_ns) & (shown[0] <= end_ns)
    t_ns, values = shown[0][inside], shown[1][inside]
    if len(t_ns) < _MIN_READINGS:
        return None
    half = len(t_ns) // 2
    if form == Form.COUNTER:
        t_s, energy_j = (t_ns - t_ns[0]) / 1e9, (values - values[0]) / 1e6
        power_w, error_w = _slope(t_s, energy_j)
        drift_w = _slope(t_s[:half], energy_j[:half])[0] - _slope(t_s[half:], energy_j[half:])[0]
        # Slopes of halves scatter eight times as much (variance of the whole) each.
        drift_w = max(abs(drift_w) - 2 * 4 * error_w, 0.0)
    else:
        value_w = values / 1e6
        power_w, error_w = float(value_w.mean()), _error_of_mean(value_w)
        drift_w = max(abs(float(value_w[:half].mean() - value_w[half:].mean())) - 2 * 2 * error_w, 0.0)
    error_w = float(np.hypot(max(error_w, _LEAST_SCATTER * power_w), drift_w / 2))
    return Plateau(int(t_ns[0]) - skip_ns, int(t_ns[-1]), power_w, error_w, len(t_ns))


def solve(shares: Floats, plateaus: list[Plateau], pauses: Floats, pause_w: float) -> Calibration | None:
    """Find the power of every phase from the plateaus, or None if they do not tell all phases apart.

    Args:
        shares: (num_plateaus, num_phases) share of each plateau's time that each phase held.
        plateaus: in the same order.
        pauses: (num_plateaus,) share of each plateau's time that lay between the phases.
        pause_w: power in between; what a sensor sees of pauses shorter than its refresh is taken to be known to half of
            the plateau's power.
    """
    power_w = np.array([one.power_w for one in plateaus])
    error_w = np.hypot([one.error_w for one in plateaus], pauses * power_w / 2 / 1.96)
    weight = 1 / error_w
    target_w = np.maximum(power_w - pauses * pause_w, 0.0)
    scaled = shares * weight[:, None]
    if len(plateaus) < shares.shape[1] or np.linalg.matrix_rank(shares, tol=0.02) < shares.shape[1]:
        return None
    found = nonnegative(scaled, target_w * weight)
    left = (shares @ found - target_w) / np.maximum(power_w, 1e-9)
    covariance = np.linalg.pinv(scaled.T @ scaled)
    spare = len(plateaus) - shares.shape[1]
    chi2 = float(np.sum(((shares @ found - target_w) * weight) ** 2)) / spare if spare > 0 else 1.0
    errors: Floats = np.sqrt(np.diag(covariance) * max(chi2, 1.0))
    return Calibration(found, errors, len(plateaus), float(np.sqrt(np.mean(left**2))))


def _error_of_mean(values: Floats) -> float:
    """Return the standard error of a mean whose neighbours may be correlated, from blocks of four."""
    blocks = values[: len(values) // 4 * 4].reshape(-1, 4).mean(axis=1) if len(values) >= 16 else values
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks)))


def _slope(t_s: Floats, energy_j: Floats) -> tuple[float, float]:
    """Return the slope of a line through the points and its standard error."""
    centred = t_s - t_s.mean()
    spread = float(centred @ centred)
    slope = float(centred @ energy_j) / spread
    left = energy_j - energy_j.mean() - slope * centred
    return slope, float(np.sqrt(float(left @ left) / max(len(t_s) - 2, 1) / spread))
