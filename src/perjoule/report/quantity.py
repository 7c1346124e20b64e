"""What a figure of a report is: a value with its unit, its method and its number of observations, or a reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Unavailable:
    """A figure that does not exist, and why."""

    reason: str


@dataclass(frozen=True)
class Quantity:
    """A figure.

    Args:
        value: in SI, never NaN.
        unit: ``s``, ``tokens/s``, ``B``, ``nats``, ``J``; ``fraction`` of 1; "" for a count or another bare number.
        how: how it was obtained, in words.
        n: number of observations that it is from.
        bounds: ends of its 95 % interval; None if it has none.
        provenance: the word that stands beside it wherever it is shown: ``measured``, ``modelled``; "" for a figure
            that needs none.
    """

    value: float
    unit: str
    how: str
    n: int
    bounds: tuple[float, float] | None = None
    provenance: str = ""


Figure = Quantity | Unavailable


@dataclass(frozen=True)
class Distribution:
    """How a time spreads over steps, in seconds; ``n`` is the number of steps."""

    mean_s: float
    median_s: float
    p95_s: float
    min_s: float
    max_s: float
    n: int


def spread(seconds: Floats) -> Distribution | Unavailable:
    """Return how the (num_steps,) ``seconds`` of the measured window spread."""
    if not len(seconds):
        return Unavailable("no step after the warm-up")
    median_s, p95_s = np.quantile(seconds, [0.5, 0.95])
    low_s, high_s = float(seconds.min()), float(seconds.max())
    return Distribution(float(seconds.mean()), float(median_s), float(p95_s), low_s, high_s, len(seconds))
