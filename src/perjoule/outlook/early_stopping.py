"""When a run with patience will stop: futures drawn from the held-out losses so far.

The losses are taken to follow ``a + b · f(n)`` with Gaussian noise, n being the number of the evaluation. Nobody knows
the law by which a loss falls, so that several are fitted, from a straight line to ``1 / n²``, with ``b >= 0``: a model
that gets worse ends by patience all the sooner. Futures are drawn from each in proportion to how well it fits, with the
uncertainty of its fit. In half of them the law holds to the end; in the others the fall ends at an unknown time, which
is beyond ``k`` times what was seen with probability ``1 / k`` (Gott, Nature 363, 1993). Each future is walked as the
training loop would walk it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.outlook.series import Span

Floats = NDArray[np.float64]
_NUM_FUTURES = 400
_POWERS = (1.0, 0.5, 0.0, -0.5, -1.0, -2.0)
"""0 stands for the logarithm."""
_TO_THE_END = 0.5
"""Share of futures in which the law holds to the end."""
_LEAST_NOISE = 1e-3


def evaluations_left(losses: Sequence[float], patience: int, most: int) -> Span:
    """Return how many evaluations are left until patience ends.

    Args:
        losses: held-out loss of each evaluation so far; one that was not finite is no improvement.
        patience: evaluations in a row without a better loss that end the run.
        most: evaluations left until something else ends the run.
    """
    best, stale = _walk(losses)
    soonest = min(patience - stale, most)
    if len(losses) < 3:  # no trend yet: anything from the soonest to the end may happen
        return Span((soonest + most) / 2, soonest, most)
    values = np.array([one if np.isfinite(one) else max(filter(np.isfinite, losses), default=0.0) for one in losses])
    random = np.random.default_rng(0)
    laws = [_fit(values, power, _LEAST_NOISE * abs(best)) for power in _POWERS]
    # The likelihood of a fit by least squares, relative to that of the best.
    shares = np.array([law.noise for law in laws]) / min(law.noise for law in laws)
    counts = random.multinomial(_NUM_FUTURES, shares ** -len(values) / (shares ** -len(values)).sum())
    futures = np.concatenate([law.draw(random, num, most) for law, num in zip(laws, counts, strict=True)])
    ends = [_end(future, best, stale, patience) for future in futures]
    low, mean, high = np.quantile(ends, (0.05, 0.5, 0.95))
    return Span(float(mean), float(low), float(high))


@dataclass(frozen=True)
class _Law:
    """A fitted law.

    Args:
        power: of the number of the evaluation.
        found: (2,) most probable ``a`` and ``b``.
        spread: (2, 2) their covariance.
        noise: standard deviation of the losses around it.
        num_seen: evaluations that it was fitted to.
    """

    power: float
    found: Floats
    spread: Floats
    noise: float
    num_seen: int

    def draw(self, random: np.random.Generator, num: int, most: int) -> Floats:
        """Return (num, most) losses of the evaluations to come."""
        trends = random.multivariate_normal(self.found, self.spread, num)
        trends[:, 1] = np.maximum(trends[:, 1], 0.0)
        lasts = self.num_seen / np.maximum(random.random((num, 1)), 1e-9)
        lasts[random.random(num) < _TO_THE_END] = np.inf
        numbers: Floats = np.minimum(self.num_seen + 1.0 + np.arange(most), lasts).astype(np.float64)
        ahead = _falling(numbers, self.power)
        drawn: Floats = trends[:, :1] + trends[:, 1:] * ahead + self.noise * random.standard_normal((num, most))
        return drawn


def _fit(values: Floats, power: float, least_noise: float) -> _Law:
    """Fit a law by least squares; one that would rise is flat."""
    falling = _falling(np.arange(1, len(values) + 1, dtype=np.float64), power)
    basis = np.stack([np.ones(len(values)), falling], axis=1)
    found: Floats = np.linalg.lstsq(basis, values, rcond=None)[0].astype(np.float64)
    if found[1] < 0:
        found = np.array([values.mean(), 0.0])
    noise = max(float((values - basis @ found).std(ddof=2)), least_noise)
    spread: Floats = noise**2 * np.linalg.inv(basis.T @ basis).astype(np.float64)
    return _Law(power, found, spread, noise, len(values))


def _falling(numbers: Floats, power: float) -> Floats:
    """Return a power of the numbers of evaluations, with the sign that makes it fall."""
    found: Floats = -np.log(numbers) if power == 0 else math.copysign(1, -power) * numbers**power
    return found


def _walk(losses: Sequence[float]) -> tuple[float, int]:
    """Return the best loss and the number of evaluations since."""
    best, stale = float("inf"), 0
    for loss in losses:
        best, stale = (loss, 0) if loss < best else (best, stale + 1)
    return best, stale


def _end(future: Floats, best: float, stale: int, patience: int) -> int:
    """Return how many evaluations of a future are made."""
    for number, loss in enumerate(future, 1):
        best, stale = (float(loss), 0) if loss < best else (best, stale + 1)
        if stale >= patience:
            return number
    return len(future)
