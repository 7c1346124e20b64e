"""The speed of this machine: seconds of a step as a non-negative sum of what it does, and the power while it runs.

::

    step_s = sum_i c_i · x_i(work),  c_i >= 0        x: FLOPs by precision, bytes, calls, weights that are updated

Each ``c_i`` is sought near a prior: that of a common processor core, times the number of threads. A sample weighs by
its relative error; one that fits badly, because a neighbour took the machine away, weighs less (Huber). Without samples
the priors remain, with an interval of their width. With samples a step is as uncertain as the ``c_i`` that it is made
of, which is wide where none of the samples was like it, and besides by a misfit that all have in common. How large that
is the samples tell: each is predicted from the others, and the misfit is what makes these errors as large as expected.

On a machine with other work to do, the processor time of a step tells more than its wall time. Where it is predicted
far better, the terms are fitted to it, and a common ratio turns it into wall time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.estimate.own.sample import Sample
from perjoule.estimate.own.work import Work
from perjoule.outlook.series import student

Floats = NDArray[np.float64]
_SAMPLE_SD = 0.05
"""Relative error of a measured step, at least."""
_HUBER = 1.5
_MISFIT, _MISFIT_FREEDOM = 0.15, 2
"""Prior of the misfit, with the number of samples that it counts for."""
_DISTURBED = 0.5
"""Error of predicted processor times over that of wall times, below which neighbours disturb the machine."""
_UPDATE_BYTES = 28.0
"""Of an AdamW step in float32: weight, gradient and two moments are read, weight and moments are written."""


@dataclass(frozen=True)
class _Term:
    """One term of the sum, with the prior of its rate per core.

    Args:
        per_s: of the unit, per second and core.
        spread: factor by which a machine may differ, one standard deviation of a log-normal distribution.
        scales: whether more cores do more of it.
    """

    per_s: float
    spread: float
    scales: bool = True


TERMS = {
    "float32_flops": _Term(4e10, 2.0),
    "bf16_flops": _Term(4e11, 4.0),
    "attention_flops": _Term(2e10, 2.0),
    "bf16_attention_flops": _Term(2e10, 3.0),
    "product_bytes": _Term(1e10, 2.5),
    "moved_bytes": _Term(5e9, 2.0),
    "bf16_bytes": _Term(4e9, 2.0),
    "strided_bytes": _Term(4e9, 2.0),
    "num_calls": _Term(1.5e5, 2.0, scales=False),
    "update_bytes": _Term(8e9, 2.0),
    "steps": _Term(1e3, 3.0, scales=False),
}


def terms(work: Work) -> Floats:
    """Return the (num_terms,) amounts of a step, in the units of ``TERMS``."""
    amounts = {name: getattr(work, name, 0.0) for name in TERMS}
    amounts |= {"update_bytes": _UPDATE_BYTES * work.trained_parameters, "steps": 1.0}
    return np.array([amounts[name] for name in TERMS], dtype=np.float64)


def prior_seconds(works: Sequence[Work], threads: int) -> Floats:
    """Return the (num_works, num_terms) seconds that each term would take on a common processor."""
    rates = [term.per_s * (threads if term.scales else 1) for term in TERMS.values()]
    table: Floats = np.stack([terms(work) for work in works]) / rates
    return table


@dataclass(frozen=True)
class Prediction:
    """A figure with its 90 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class StepModel:
    """Predicts a step on the machine whose samples it was fitted to.

    Args:
        factors: (num_terms,) how much slower than the prior each term is.
        threads: of the calibration.
        covariance: (num_terms, num_terms) of the factors.
        misfit: relative standard deviation of a step around the sum.
        freedom: degrees of freedom of the misfit.
        watts: power while training; None if nothing was metered.
        meters: how the power was obtained.
        num_samples: number of configurations; 0: the priors.
    """

    factors: Floats
    threads: int
    covariance: Floats
    misfit: float
    freedom: float
    watts: Prediction | None
    meters: str
    num_samples: int

    def step_s(self, work: Work) -> Prediction:
        """Return the seconds of a step."""
        parts = prior_seconds([work], self.threads)[0]
        seconds = float(parts @ self.factors)
        error = self._prior_error(parts)
        if self.num_samples:
            known = student(self.freedom) * math.sqrt(
                self.misfit**2 + _uncertainty(parts, self.factors, self.covariance)
            )
            error = min(error, known)
        return Prediction(seconds, seconds * math.exp(-error), seconds * math.exp(error))

    def _prior_error(self, parts: Floats) -> float:
        """Return the half width when nothing was measured: that of the terms, by their share of the sum."""
        spreads = np.array([math.log(term.spread) for term in TERMS.values()])
        # Machines are slow or fast in all respects alike, so that the spreads add up rather than average out.
        return float(1.645 * (parts @ spreads) / parts.sum())


def uncalibrated(threads: int) -> StepModel:
    """Return the model of a machine on which nothing was measured."""
    num = len(TERMS)
    return StepModel(np.ones(num), threads, np.zeros((num, num)), 0.0, 1.0, None, "not calibrated", 0)


def fit(samples: Sequence[Sample], threads: int) -> StepModel:
    """Learn the machine from samples; without any, see :func:`uncalibrated`."""
    if not samples:
        return uncalibrated(threads)
    table = prior_seconds([one.work for one in samples], threads)
    seconds = np.array([one.step_s for one in samples])
    busy = np.array([one.cpu_s for one in samples])
    ratios = np.ones(len(samples))
    if len(samples) > 1 and np.isfinite(busy).all() and (busy > 0).all():
        by_wall, by_cpu = (np.median(np.abs(_left_out(table, one, ratios)[0])) for one in (seconds, busy))
        if by_cpu < _DISTURBED * by_wall:
            ratios = seconds / busy
    watts = [one.watts for one in samples if one.watts is not None]
    factors, covariance = _solve(table, seconds / ratios)
    ratio = float(np.median(ratios))
    return StepModel(
        factors=factors * ratio,
        threads=threads,
        covariance=covariance * ratio**2,
        misfit=max(_SAMPLE_SD, _misfit(*_left_out(table, seconds, ratios))),
        freedom=max(3.0, len(samples) - 1.0),
        watts=_spread(watts) if watts else None,
        meters=samples[0].meters,
        num_samples=len(samples),
    )


def _left_out(table: Floats, seconds: Floats, ratios: Floats) -> tuple[Floats, Floats]:
    """Predict each sample from the others.

    Args:
        table: (num_samples, num_terms) prior seconds.
        seconds: (num_samples,) measured.
        ratios: (num_samples,) of these to what the terms are fitted to; the median of the others is used.

    Returns:
        (num_samples,) errors of the logarithms, and the variances that the factors alone would give them.
    """
    errors, variances = np.zeros(len(seconds)), np.zeros(len(seconds))
    for row in range(len(seconds)):
        kept = np.arange(len(seconds)) != row
        factors, covariance = _solve(table[kept], (seconds / ratios)[kept])
        ratio = float(np.median(ratios[kept])) if kept.any() else 1.0
        errors[row] = math.log(float(table[row] @ factors) * ratio / seconds[row])
        variances[row] = _uncertainty(table[row], factors, covariance)
    return errors, variances


def _uncertainty(parts: Floats, factors: Floats, covariance: Floats) -> float:
    """Return the relative variance of a sum of terms that the uncertainty of their factors gives it."""
    return float(parts @ covariance @ parts) / float(parts @ factors) ** 2


def _misfit(errors: Floats, variances: Floats) -> float:
    """Return the standard deviation that, added to the variances, makes the errors as large as they should be."""
    errors = np.append(errors, [_MISFIT] * _MISFIT_FREEDOM)  # the prior, as further errors
    variances = np.append(variances, [0.0] * _MISFIT_FREEDOM)
    low, high = 0.0, float(np.abs(errors).max())
    for _ in range(40):
        middle = (low + high) / 2
        too_small = float(np.mean(errors**2 / (middle**2 + variances + 1e-12))) > 1
        low, high = (middle, high) if too_small else (low, middle)
    return high


def _solve(table: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Return the (num_terms,) non-negative factors near 1 whose sums have small relative errors, and their covariance.

    Without rows these are the priors.
    """
    scaled = table / seconds[:, None]
    weights = np.ones(len(seconds))
    prior_weights = np.array([1 / math.log(term.spread) ** 2 for term in TERMS.values()])
    factors = np.ones(table.shape[1])
    for _ in range(8):
        weighted = scaled * (weights / _SAMPLE_SD**2)[:, None]
        matrix = weighted.T @ scaled + np.diag(prior_weights)
        factors = _non_negative(matrix, weighted.sum(axis=0) + prior_weights, factors)
        missed = np.abs(scaled @ factors - 1) / _SAMPLE_SD
        weights = np.minimum(1.0, _HUBER / np.maximum(missed, 1e-9))
    covariance: Floats = np.linalg.inv(matrix).astype(np.float64)
    return factors, covariance


def _non_negative(matrix: Floats, vector: Floats, start: Floats) -> Floats:
    """Minimise ``x·M·x / 2 - v·x`` over ``x >= 0`` by coordinates: few, and ``M`` is positive definite."""
    found = start.copy()
    for _ in range(400):
        before = found.copy()
        for place in range(len(found)):
            rest = vector[place] - matrix[place] @ found + matrix[place, place] * found[place]
            found[place] = max(0.0, rest / matrix[place, place])
        if np.abs(found - before).max() < 1e-9:
            break
    return found


def _spread(values: Sequence[float]) -> Prediction:
    """Return the median and the 5 % and 95 % quantiles."""
    low, mean, high = np.quantile(values, (0.05, 0.5, 0.95))
    return Prediction(float(mean), float(low), float(high))
