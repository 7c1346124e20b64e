"""What an evaluation returns, whatever it looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One number about a trained model.

    Args:
        name: such as ``loss``, ``perplexity``, ``energy_per_token``.
        value: the number; None: not measured, and the evaluation's details say why under this name.
        unit: such as ``nats/token``, ``J/token``; ``1`` for a pure number.
        stderr: its standard error, in the same unit; None where there is none to give.
        low: lower end of its interval, where the error is not symmetric.
        high: upper end.
        of: what it is a number of: a split, a task, a context length.
    """

    name: str
    value: float | None
    unit: str
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    of: str = ""


@dataclass(frozen=True)
class Findings:
    """What one evaluation found.

    Args:
        metrics: the figures, in the order in which they are shown and recorded.
        details: everything else worth keeping: curves, settings that were derived, reasons; plain JSON.
    """

    metrics: Sequence[Metric]
    details: Mapping[str, Any]
