"""Ratios and correlations over positions, with standard errors that know that neighbours resemble each other.

Positions of one document are not independent, so errors are *clustered*: what a cluster (a document, a row) adds to an
estimate beyond its share is summed within the cluster first and squared then. With R clusters c:

    ratio         r = Σy / Σw               stderr² = R/(R-1)·Σ_c (Σ_{i∈c} y_i - r·w_i)² / (Σw)²
    correlation   r = mean(u·v)             stderr² = R/(R-1)·Σ_c (Σ_{i∈c} u_i·v_i - r·(u_i² + v_i²)/2)² / n²

where u and v are standardised. These are the linearised (sandwich) errors: exact to first order in 1/R, too small where
there are only a few clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Args:
        value: None where it is not defined: of nothing, of a constant, or not finite.
        stderr: None where there is no value, or one cluster only.
    """

    value: float | None
    stderr: float | None

    def times(self, factor: float) -> Estimate:
        """Return it in another unit."""
        return Estimate(*(None if number is None else number * factor for number in (self.value, self.stderr)))


def ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any], cluster: Integers) -> Estimate:
    """Return the sum of one quantity over the sum of another.

    Args:
        numerator: (n,) of each position, or already summed over positions of one cluster.
        denominator: (n,) what it is per: 1 for a mean, a number of bytes, …
        cluster: (n,) which cluster each belongs to, any integers.
    """
    total = float(denominator.sum(dtype=np.float64))
    value = float(numerator.sum(dtype=np.float64)) / total if total else math.nan
    if not math.isfinite(value):
        return Estimate(None, None)
    counted = denominator != 0
    residuals = numerator.astype(np.float64) - value * denominator
    return Estimate(value, _clustered(residuals, cluster, counted, total))


def mean(values: npt.NDArray[Any], cluster: Integers) -> Estimate:
    """Return the mean over positions; see :func:`ratio`."""
    return ratio(values, np.ones(len(values)), cluster)


def correlation(x: npt.NDArray[Any], y: npt.NDArray[Any], cluster: Integers) -> Estimate:
    """Return Pearson's correlation of two quantities over positions.

    Args:
        x: (n,) of each position.
        y: (n,) of each position.
        cluster: (n,) which cluster each belongs to, any integers.
    """
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(None, None)
    u, v = _standardised(x), _standardised(y)
    value = float((u * v).mean())
    residuals = u * v - value * (u**2 + v**2) / 2
    return Estimate(value, _clustered(residuals, cluster, np.ones(len(u), dtype=bool), len(u)))


def _standardised(values: npt.NDArray[Any]) -> Floats:
    """Return values with mean 0 and mean square 1."""
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    standardised: Floats = centred / math.sqrt((centred**2).mean())
    return standardised


def _clustered(residuals: Floats, cluster: Integers, counted: npt.NDArray[np.bool_], total: float) -> float | None:
    """Return the standard error from what each position adds; None with fewer than two clusters."""
    _, index = np.unique(cluster[counted], return_inverse=True)
    sums = np.bincount(index, residuals[counted])
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / total
