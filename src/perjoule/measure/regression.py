"""Tier R: the power of every phase from readings that each cover several of them.

A reading is the true power seen through the sensor: averaged over a window W, smoothed with a time constant τ, shown
after a lag L. With X(L, W, τ) the share that every phase has in each reading, the powers P solve ``y = X P``, P ≥ 0.

The sensor's kernel (L, W, τ) is seldom known and decides everything: a wrong lag exchanges the labels of two phases, a
wrong window changes their contrast, both at small standard errors. So all kernels that a sensor may have are tried, and
*every kernel that explains the readings about as well as the best one* contributes to the interval. What the data
cannot tell apart then shows as an interval that is too wide to be offered. The method:

1. readings -> moments of publication (:mod:`perjoule.measure.publications`)
2. residual sum S(θ) over a grid of kernels θ, then finer around the good ones
3. accepted: n ln(S(θ) / S_min) ≤ 7.8 · 1.5², n = observations over their residuals' correlation time
   (profile likelihood, χ² with three degrees of freedom at 95 %; Lang & Rünger 2013 fold executions in a similar way)
4. interval: hull of P(θ) ± 1.96 · 1.5 · standard error from blocks of residuals, over all accepted θ
5. gates: observations, condition number, share explained, whiteness, kernel inside the grid, width of the interval
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from perjoule.measure.sensor_model import Design, Kernel, Observations, lay_out

Floats = NDArray[np.float64]
INFLATION = 1.5
MIN_OBSERVATIONS, MAX_CONDITION, MIN_EXPLAINED, MAX_CORRELATION = 40, 200.0, 0.9, 0.95
MAX_ERROR = 0.06
"""Root mean square of the relative standard errors of all phases with a hundredth of the time or more."""
_CHI2_95_3 = 7.81
_UNEXPLAINED = "the phases explain {:.0%} of the readings' variation, {:.0%} needed"
_COARSE_OBSERVATIONS, _MAX_OBSERVATIONS, _STARTS = 400, 3000, 12


@dataclass(frozen=True)
class Regression:
    """Powers of phases.

    Args:
        power_w: (num_phases,) W.
        low_w: (num_phases,) lower ends of the 95 % intervals.
        high_w: (num_phases,) upper ends.
        kernel: the best one.
        explained: share of the readings' variation that it explains (R²).
        condition: number of the scaled design matrix.
        num: observations.
        num_kernels: kernels that explain the readings about as well.
    """

    power_w: Floats
    low_w: Floats
    high_w: Floats
    kernel: Kernel
    explained: float
    condition: float
    num: int
    num_kernels: int

    def __str__(self) -> str:
        """Return the figures behind the result."""
        k = self.kernel
        return (
            f"{self.num} readings, R² {self.explained:.2f}, condition {self.condition:.0f}, "
            f"lag {k.lag_s * 1e3:.1f} ms, window {k.window_s * 1e3:.0f} ms, smoothing {k.tau_s * 1e3:.0f} ms, "
            f"{self.num_kernels} kernels fit"
        )


@dataclass(frozen=True)
class NotSeparable:
    """Why the phases cannot be told apart by a regression."""

    reason: str


def regress(
    seen: Observations,
    spent_s: Callable[[Floats], Floats],
    inside: NDArray[np.bool_],
    shortest_s: float,
    bounds_w: tuple[float, float],
) -> Regression | NotSeparable:
    """Find the power of every phase.

    Args:
        seen: the readings.
        spent_s: ascending moments (num,) to the (num_phases, num) seconds that each phase had lasted by then; the
            phases together fill all time.
        inside: (num_phases,) which of them are to be told apart; the others, such as what lies outside the steps, only
            help to find the sensor's lag.
        shortest_s: mean length of the shortest phase that matters.
        bounds_w: power that no phase can fall below and power that none can exceed (may be infinite).
    """
    if len(seen.end_s) < MIN_OBSERVATIONS:
        return NotSeparable(f"{len(seen.end_s)} readings are too few; {MIN_OBSERVATIONS} are needed")
    if seen.width_s > 4 * shortest_s:
        return NotSeparable(
            f"a reading's moment is known to {seen.width_s * 1e3:.1f} ms, a phase lasts {shortest_s * 1e3:.1f} ms"
        )
    if len(seen.end_s) > _MAX_OBSERVATIONS:
        seen = _head(seen, _MAX_OBSERVATIONS)
    lags, windows, taus = _kernels(seen, shortest_s)
    design = lay_out(seen, spent_s, shortest_s, lags, windows[-1], taus[-1])
    search = _Search(design, seen, inside.astype(np.float64), (lags, windows, taus), bounds_w[0])
    fits = search.minima()
    return fits if isinstance(fits, NotSeparable) else _conclude(search, fits, bounds_w)


def _head(seen: Observations, num: int) -> Observations:
    span_s = None if seen.span_s is None else seen.span_s[:num]
    return Observations(seen.end_s[:num], seen.value_w[:num], span_s, seen.width_s, seen.refresh_s, seen.window_s)


def _kernels(seen: Observations, shortest_s: float) -> tuple[Floats, list[float], list[float]]:
    """Return the lags, windows and time constants to start from; the last ones bound what a sensor may have."""
    refresh_s = seen.refresh_s
    reach_s = max(refresh_s, 3 * seen.width_s)
    step_s = max(min(shortest_s / 2, refresh_s / 20), reach_s / 400)
    if seen.span_s is not None:
        # A counter covers everything between two of its values; only when is in question.
        return np.arange(-reach_s / 2, 1.5 * reach_s + step_s, step_s), [0.0], [0.0, 0.2 * refresh_s]
    lags = np.arange(-0.3 * reach_s, 1.3 * reach_s + step_s, step_s)
    if seen.window_s is None:
        windows = [share * refresh_s for share in (0.05, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)]
    else:
        # What is documented may not be what is installed: a window as long as the refresh is tried in any case.
        windows = sorted({*(share * seen.window_s for share in (0.25, 0.5, 0.8, 1.0, 1.3)), 0.5 * refresh_s, refresh_s})
    longest_s = max(0.3 * refresh_s, 0.02)
    return lags, windows, [0.0, 0.3 * longest_s, longest_s]


@dataclass(frozen=True)
class _Fit:
    """The powers under one kernel, with the mean square of what they leave."""

    kernel: Kernel
    residual: float
    power_w: Floats


class _Search:
    """Fits kernels: a grid to some of the readings, then, from its best places, the nearest minima to all of them.

    Args:
        design: shares for any kernel.
        seen: the readings.
        inside: (num_phases,) 1 for those that are to be told apart, 0 for the others.
        grid: lags, windows and time constants.
        least_w: power below which no phase falls.
    """

    def __init__(
        self,
        design: Design,
        seen: Observations,
        inside: Floats,
        grid: tuple[Floats, list[float], list[float]],
        least_w: float,
    ) -> None:
        self.design, self.seen, self.inside, self.grid, self.least_w = design, seen, inside, grid, least_w
        self.everything = np.arange(len(seen.end_s))
        num = len(self.everything)
        self.some = np.unique(np.linspace(0, num - 1, min(num, _COARSE_OBSERVATIONS)).astype(int))
        lags, windows, taus = grid
        self._low = np.array([lags[0], 0.0, 0.0])
        self._high = np.array([lags[-1], windows[-1], taus[-1]])
        self._step = np.array([(lags[1] - lags[0]) / 4, max(windows[-1] / 40, 1e-9), taus[-1] / 40])
        self._free = [0, 1, 2] if len(windows) > 1 else [0, 2]

    def minima(self) -> list[_Fit] | NotSeparable:
        """Return the distinct good fits, best first; or why there is none, where the grid shows it already."""
        _, windows, taus = self.grid
        starts = [fit for window in windows for fit in self._valleys(window, taus[0])]
        if (explained := self._explained(min(starts, key=lambda fit: fit.residual))) < MIN_EXPLAINED / 3:
            return NotSeparable(_UNEXPLAINED.format(explained, MIN_EXPLAINED))
        starts += [fit for window, tau in product(windows, taus[1:]) for fit in self._valleys(window, tau)]
        starts.sort(key=lambda fit: fit.residual)
        reached = [self._descend(one.kernel) for one in starts[:_STARTS] if one.residual <= 6 * starts[0].residual]
        return sorted(reached, key=lambda fit: fit.residual)

    def _valleys(self, window_s: float, tau_s: float) -> list[_Fit]:
        """Return the fits at the lags where the residual is lower than at both neighbours."""
        fits = [self.fit(Kernel(float(lag), window_s, tau_s), self.some) for lag in self.grid[0]]
        residuals = np.array([np.inf, *(fit.residual for fit in fits), np.inf])
        lower = (residuals[1:-1] <= residuals[:-2]) & (residuals[1:-1] <= residuals[2:])
        return [fits[row] for row in np.flatnonzero(lower)]

    def _explained(self, fit: _Fit) -> float:
        """Return the share of the variation within the phases that a fit explains."""
        shares = self.design.shares(self.seen, self.some, fit.kernel)
        within = shares @ self.inside > 0.99
        value_w = self.seen.value_w[self.some][within]
        variance = float(value_w.var()) if within.sum() > 1 else 0.0
        left = float(np.mean((value_w - shares[within] @ fit.power_w) ** 2)) if within.any() else np.inf
        return 1 - left / variance if variance > 0 else 0.0

    def fit(self, kernel: Kernel, rows: NDArray[np.int64]) -> _Fit:
        """Return the powers under a kernel."""
        shares, value_w = self.design.shares(self.seen, rows, kernel), self.seen.value_w[rows]
        power_w = self.least_w + nonnegative(shares, value_w - self.least_w * shares.sum(axis=1))
        residual = value_w - shares @ power_w
        return _Fit(kernel, float(residual @ residual) / len(rows), power_w)

    def slopes(self, fit: _Fit) -> Floats:
        """Return the (num, num_free) change of the fitted readings with each free part of the kernel."""
        at = np.array([fit.kernel.lag_s, fit.kernel.window_s, fit.kernel.tau_s])
        columns = []
        for part in self._free:
            up, down = at.copy(), at.copy()
            up[part] = min(at[part] + self._step[part], self._high[part])
            down[part] = max(at[part] - self._step[part], self._low[part])
            shares = [self.design.shares(self.seen, self.everything, Kernel(*map(float, end))) for end in (up, down)]
            columns.append((shares[0] - shares[1]) @ fit.power_w / max(up[part] - down[part], 1e-12))
        return np.stack(columns, axis=1)

    def _descend(self, kernel: Kernel) -> _Fit:
        """Improve a kernel by Gauss-Newton steps on kernel and powers together, halved until they help."""
        fit = self.fit(kernel, self.everything)
        for _ in range(8):
            shares = self.design.shares(self.seen, self.everything, fit.kernel)
            wide = np.concatenate([shares, self.slopes(fit)], axis=1)
            scale = np.linalg.norm(wide, axis=0)
            scale[scale == 0] = 1.0
            change = np.linalg.lstsq(wide / scale, self.seen.value_w - shares @ fit.power_w, rcond=1e-8)[0] / scale
            move = np.zeros(3)
            move[self._free] = change[shares.shape[1] :]
            better = None
            for halving in (1.0, 0.5, 0.25, 0.1):
                at = np.array([fit.kernel.lag_s, fit.kernel.window_s, fit.kernel.tau_s]) + halving * move
                trial = self.fit(Kernel(*map(float, np.clip(at, self._low, self._high))), self.everything)
                if trial.residual < fit.residual * (1 - 1e-5):
                    better = trial
                    break
            if better is None:
                break
            fit = better
        return fit


def _conclude(search: _Search, fits: list[_Fit], bounds_w: tuple[float, float]) -> Regression | NotSeparable:
    """Pass the gates, and take the hull over all kernels that fit about as well as the best."""
    seen, inside, best = search.seen, search.inside, fits[0]
    shares = search.design.shares(seen, search.everything, best.kernel)
    residual = seen.value_w - shares @ best.power_w
    within = shares @ inside > 0.99
    if within.sum() < MIN_OBSERVATIONS:
        return NotSeparable(f"{within.sum()} readings lie within the phases; {MIN_OBSERVATIONS} are needed")
    variance = float(seen.value_w[within].var())
    left = float(np.mean(residual[within] ** 2))
    explained = 1 - left / variance if variance > 0 else 0.0
    used = inside.astype(bool)
    columns = shares[within][:, used]
    condition = float(np.linalg.cond(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)))
    if explained < MIN_EXPLAINED:
        return NotSeparable(_UNEXPLAINED.format(explained, MIN_EXPLAINED))
    if not condition < MAX_CONDITION:
        return NotSeparable(f"every reading covers the same mix of phases (condition number {condition:.0f})")
    correlation = float(residual[1:] @ residual[:-1]) / max(float(residual @ residual), 1e-300)
    if correlation > MAX_CORRELATION:
        return NotSeparable(f"neighbouring residuals correlate ({correlation:.2f}): the phases are not what varies")
    lags, windows, taus = search.grid
    kernel = best.kernel
    if not (lags[0] < kernel.lag_s < lags[-1] and kernel.tau_s < 0.98 * taus[-1] and kernel.window_s <= windows[-1]):
        return NotSeparable("no lag and smoothing that a sensor can have explain the readings")
    free = len(residual) * (1 - max(correlation, 0.0)) / (1 + max(correlation, 0.0))
    limit = max(best.residual, 1e-9 * variance) * math.exp(_CHI2_95_3 * INFLATION**2 / max(free, 8.0))
    accepted = [fit for fit in fits if fit.residual <= limit]
    low_w, high_w = np.full(len(best.power_w), np.inf), np.full(len(best.power_w), -np.inf)
    for fit in accepted:
        shares = search.design.shares(seen, search.everything, fit.kernel)
        wide = np.concatenate([shares, search.slopes(fit)], axis=1)
        half_w = 1.96 * INFLATION * block_errors(wide, seen.value_w - shares @ fit.power_w)[: shares.shape[1]]
        low_w, high_w = np.minimum(low_w, fit.power_w - half_w), np.maximum(high_w, fit.power_w + half_w)
    low_w, high_w = np.maximum(low_w, bounds_w[0]), np.minimum(high_w, bounds_w[1])
    matters = used & (search.design.shares(seen, search.everything, best.kernel).mean(axis=0) >= 0.01)
    if (best.power_w[matters] <= bounds_w[0] + 0.02 * float(seen.value_w.mean())).any():
        return NotSeparable("a phase would have used less power than an idle device")
    error = ((high_w - low_w) / 2 / (1.96 * INFLATION) / np.maximum(best.power_w, 1e-9))[matters]
    if not (expected := float(np.sqrt(np.mean(error**2)))) <= MAX_ERROR:
        return NotSeparable(
            f"the powers would be wrong by {expected:.0%} on average, {MAX_ERROR:.0%} is accepted "
            f"({len(accepted)} sensor kernels explain the readings)"
        )
    return Regression(best.power_w, low_w, high_w, best.kernel, explained, condition, len(residual), len(accepted))


def block_errors(shares: Floats, residual: Floats, num_blocks: int = 24) -> Floats:
    """Return standard errors of the least-squares powers that allow for residuals correlated within blocks.

    Args:
        shares: (num, num_phases).
        residual: (num,).
        num_blocks: how many stretches of neighbours the readings are cut into.
    """
    scale = np.linalg.norm(shares, axis=0)
    scale[scale == 0] = 1.0
    scaled = shares / scale
    inverse = np.linalg.pinv(scaled.T @ scaled, rcond=1e-10, hermitian=True)
    scores = scaled * residual[:, None]
    edges = np.linspace(0, len(residual), min(num_blocks, len(residual)) + 1).astype(int)
    sums = np.add.reduceat(scores, edges[:-1], axis=0)
    clustered = inverse @ (sums.T @ sums) @ inverse
    plain = inverse * float(residual @ residual) / max(len(residual) - shares.shape[1], 1)
    variance: Floats = np.maximum(np.diag(clustered), np.diag(plain))
    errors: Floats = np.sqrt(np.maximum(variance, 0)) / scale
    return errors


def nonnegative(shares: Floats, values: Floats) -> Floats:
    """Return P ≥ 0 that minimises |shares P − values|² (Lawson & Hanson 1974, chapter 23, on the normal equations)."""
    gram, right = shares.T @ shares, shares.T @ values
    gram = gram + np.eye(len(right)) * 1e-12 * max(float(np.trace(gram)), 1e-300)
    power: Floats = np.linalg.solve(gram, right).astype(np.float64)
    if (power >= 0).all():
        return power
    power, free = np.zeros(len(right)), np.zeros(len(right), bool)
    for _ in range(4 * len(right)):
        gradient = right - gram @ power
        gradient[free] = -np.inf
        if gradient.max() <= 1e-10 * max(float(np.abs(right).max()), 1e-300):
            break
        free[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(len(right))
            trial[free] = np.linalg.solve(gram[np.ix_(free, free)], right[free])
            if (trial[free] > 0).all():
                power = trial
                break
            bad = free & (trial <= 0)
            step = float((power[bad] / (power[bad] - trial[bad])).min())
            power = power + step * (trial - power)
            free &= power > 1e-15
    return power
