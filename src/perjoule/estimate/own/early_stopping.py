"""When a run with patience will stop: futures drawn from the held-out losses so far.

The losses are taken to follow ``a + b / sqrt(n)`` with Gaussian noise, n being the number of the evaluation: least
squares with ``b >= 0``, since a model that gets worse ends by patience all the sooner. Futures are drawn from the fit
and its own uncertainty; each ends as the training loop would end it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perjoule.estimate.contract import Estimate

_NUM_FUTURES = 400
_LEAST_NOISE = 1e-3


def evaluations_left(losses: Sequence[float], patience: int, most: int) -> Estimate:
    """Return how many evaluations are left until patience ends.

    Args:
        losses: held-out loss of each evaluation so far; one that was not finite is no improvement.
        patience: evaluations in a row without a better loss that end the run.
        most: evaluations left until something else ends the run.
    """
    best, stale = _walk(losses)
    soonest = min(patience - stale, most)
    if len(losses) < 3:  # no trend yet: anything from the soonest to the end may happen
        return Estimate((soonest + most) / 2, soonest, most, "evaluations", "patience, too few evaluations for a trend")
    values = np.array([one if np.isfinite(one) else max(filter(np.isfinite, losses), default=0.0) for one in losses])
    basis = np.stack([np.ones(len(values)), 1 / np.sqrt(1 + np.arange(len(values)))], axis=1)
    found, *_ = np.linalg.lstsq(basis, values, rcond=None)
    found[1] = max(found[1], 0.0)
    noise = max(float((values - basis @ found).std(ddof=2 if len(values) > 2 else 0)), _LEAST_NOISE * abs(best))
    spread = noise**2 * np.linalg.inv(basis.T @ basis)
    random = np.random.default_rng(0)
    trends = random.multivariate_normal(found, spread, _NUM_FUTURES)
    trends[:, 1] = np.maximum(trends[:, 1], 0.0)
    ahead = 1 / np.sqrt(1 + len(values) + np.arange(most))
    futures = trends[:, :1] + trends[:, 1:] * ahead + noise * random.standard_normal((_NUM_FUTURES, most))
    ends = [_end(future, best, stale, patience) for future in futures]
    low, mean, high = np.quantile(ends, (0.05, 0.5, 0.95))
    return Estimate(float(mean), float(low), float(high), "evaluations", "patience, from the held-out losses so far")


def _walk(losses: Sequence[float]) -> tuple[float, int]:
    """Return the best loss and the number of evaluations since."""
    best, stale = float("inf"), 0
    for loss in losses:
        best, stale = (loss, 0) if loss < best else (best, stale + 1)
    return best, stale


def _end(future: np.ndarray[tuple[int], np.dtype[np.float64]], best: float, stale: int, patience: int) -> int:
    """Return how many evaluations of a future are made."""
    for number, loss in enumerate(future, 1):
        best, stale = (float(loss), 0) if loss < best else (best, stale + 1)
        if stale >= patience:
            return number
    return len(future)
