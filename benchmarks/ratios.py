"""Ratios and differences with their spread.

Absolute times on a shared machine drift by tens of percent within minutes, so arms are measured in turn and compared
within the round. What is reported is the median over rounds with a 95 % bootstrap interval; the same comparison of an
arm with itself (A/A) shows what the method can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """A median and its 95 % interval, in the unit of the values it was made from."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 3, scale: float = 1.0) -> str:
        """Return ``1.003 [0.998, 1.007]``.

        Args:
            digits: after the point.
            scale: multiplies the three numbers, such as 1e3 for milliseconds.
        """
        median, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the percentile bootstrap interval of the median.

    Args:
        values: at least one, independent of one another.

    Raises:
        ValueError: if there are none.
    """
    if not len(values):
        raise ValueError("a spread needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    resampled = np.random.default_rng(0).choice(array, size=(NUM_RESAMPLES, len(array)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return Spread(float(np.median(array)), float(low), float(high))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Return the spread of ``numerator[i] / denominator[i]``, where i is a round in which both were measured."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def paired_difference(minuend: Sequence[float], subtrahend: Sequence[float]) -> Spread:
    """Return the spread of ``minuend[i] - subtrahend[i]``, where i is a round in which both were measured."""
    return spread([a - b for a, b in zip(minuend, subtrahend, strict=True)])
