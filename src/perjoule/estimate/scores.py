"""Errors of estimators as rows of one table: median, 95th percentile, sign, and what the intervals were worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from perjoule.estimate.contract import Estimate, Estimator, Measurement, Needs, Target


@dataclass(frozen=True)
class Outcome:
    """An estimate beside the truth.

    Args:
        truth: what was measured, in the estimate's unit.
        estimate: what was predicted.
        architecture: name of the network.
    """

    truth: float
    estimate: Estimate
    architecture: str = ""

    @property
    def error(self) -> float:
        """Return the signed relative error."""
        return self.estimate.mean / self.truth - 1

    @property
    def covered(self) -> bool:
        """Return whether the truth lies in the interval."""
        return self.estimate.low <= self.truth <= self.estimate.high


@dataclass(frozen=True)
class Score:
    """A row of the table. Errors are shares, not percent.

    Args:
        split: what was left out.
        study: whose measurements were asked.
        method: kind of the estimator.
        target: what was estimated.
        num: number of estimates.
        mean: mean of the absolute relative errors, as most publications give it.
        median: median of the absolute relative errors.
        p95: 95th percentile of them.
        signed: median of the signed errors.
        coverage: share of the true figures that lie in the 90 % intervals.
        width: median of half the intervals' width over the estimate.
        note: what a reader must know; what the method presupposes, first of all.
    """

    split: str
    study: str
    method: str
    target: Target
    num: int
    mean: float
    median: float
    p95: float
    signed: float
    coverage: float
    width: float
    note: str = ""


def summarize(
    outcomes: Sequence[Outcome], *, split: str, study: str, method: str, target: Target, note: str = ""
) -> Score:
    """Return the row of some outcomes, of which there must be one at least."""
    errors = np.array([one.error for one in outcomes])
    widths = [(one.estimate.high - one.estimate.low) / 2 / abs(one.estimate.mean) for one in outcomes]
    return Score(
        split=split,
        study=study,
        method=method,
        target=target,
        num=len(outcomes),
        mean=float(np.abs(errors).mean()),
        median=float(np.median(np.abs(errors))),
        p95=float(np.quantile(np.abs(errors), 0.95)),
        signed=float(np.median(errors)),
        coverage=float(np.mean([one.covered for one in outcomes])),
        width=float(np.median(widths)),
        note=note,
    )


def ask(estimator: Estimator, tests: Iterable[Measurement], target: Target) -> list[Outcome]:
    """Estimate what was measured. Hindsight is given to methods that say they need it, and to no other.

    Rows without the figure, or whose power sensor cannot be believed, are not asked.
    """
    asked, truths = [], []
    for one in tests:
        truth = one.value(target)
        hindsight = one.hindsight if estimator.needs is Needs.TRUE_DURATION else None
        if truth is None or not one.trusted or (estimator.needs is Needs.TRUE_DURATION and hindsight is None):
            continue
        asked.append(one.job.revealed(hindsight))
        truths.append(truth)
    estimates = estimator.predict_all(asked, target) if asked else []
    return [
        Outcome(truth, estimate, job.workload.architecture.name)
        for truth, estimate, job in zip(truths, estimates, asked, strict=True)
    ]


_COLUMNS = (
    "left out",
    "measured by",
    "method",
    "quantity",
    "n",
    "mean",
    "median",
    "p95",
    "signed",
    "in 90 %",
    "width",
    "",
)


def table(scores: Sequence[Score]) -> list[str]:
    """Return the lines of a table for the terminal, all columns aligned."""
    cells = [_COLUMNS, *map(_cells, scores)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    lines = []
    for row in cells:
        texts = [
            text.ljust(width) if column in (0, 1, 2, 3, 11) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return lines


def _cells(score: Score) -> tuple[str, ...]:
    """Return the texts of a row."""
    return (
        score.split,
        score.study,
        score.method,
        score.target.value,
        str(score.num),
        f"{100 * score.mean:.1f} %",
        f"{100 * score.median:.1f} %",
        f"{100 * score.p95:.0f} %",
        f"{100 * score.signed:+.1f} %",
        f"{100 * score.coverage:.0f} %",
        f"±{100 * score.width:.0f} %",
        score.note,
    )
