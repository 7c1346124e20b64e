"""Several runs on equal terms: how large their models are, and how far each came for the same tokens, time, joules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perjoule.core.units import duration, si
from perjoule.report import wording
from perjoule.report.energy import PARTLY
from perjoule.report.figures import Floats, smooth_loss
from perjoule.report.quantity import Quantity
from perjoule.report.summary import Summary
from perjoule.report.what_ran import MISSING
from perjoule.runs.tables import Run

EQUAL_TERMS = "On equal terms"
_SAME = 1e-3
"""Amounts that differ by less than this share are the same: a step does not end where another run's does."""
SIZES = {
    "parameters": "Parameters",
    "parameters_non_embedding": "Parameters, non-embedding",
    "flops_per_token": "FLOPs per token, training",
}


@dataclass(frozen=True)
class Terms:
    """One thing that runs spend.

    Args:
        name: what it is.
        spent: for each run (num_kept_steps,) how much was spent after each step; not a number where unknown.
        show: formats an amount.
    """

    name: str
    spent: Sequence[Floats]
    show: Callable[[float], str]

    @property
    def equal(self) -> float | None:
        """Return the largest amount that every run spent; None unless all of at least two have spent some."""
        last = [spent[np.isfinite(spent)][-1:] for spent in self.spent]
        if len(last) < 2 or not all(map(len, last)):
            return None
        return float(min(one[0] for one in last)) or None


def size_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return a row per size of the models; what no manifest says is left out."""
    rows = []
    for key, label in SIZES.items():
        found = [run.fact("model", key) for run in runs]
        if any(found):
            rows.append((label, *(MISSING if one is None else f"{int(one):,}" for one in found)))
    return rows


def equal_rows(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return the losses that every run had reached for the same tokens, the same time and the same energy."""
    rows: list[tuple[str, ...]] = []
    for terms in all_terms(runs, summaries):
        if (equal := terms.equal) is None:
            continue
        at = [_losses_at(run, spent, equal) for run, spent in zip(runs, terms.spent, strict=True)]
        rows.append(
            (f"Smoothed training loss at equal {terms.name}, {terms.show(equal)}", *(training for training, _ in at))
        )
        if any(validation != MISSING for _, validation in at):
            rows.append(("Validation loss there", *(validation for _, validation in at)))
    return rows


def all_terms(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[Terms]:
    """Return what the runs spent: tokens, time of training, energy with start-up."""
    words = {summary.energy_j.provenance for summary in summaries if isinstance(summary.energy_j, Quantity)}
    word = words.pop() if len(words) == 1 else PARTLY
    kept = [run.steps.kept for run in runs]
    return [
        Terms("tokens", [np.cumsum(steps.tokens).astype(np.float64) for steps in kept], si),
        Terms("time of training", [_running_total(steps.training_s) for steps in kept], duration),
        Terms("energy", [summary.cumulative_j for summary in summaries], lambda j: f"{wording.joules(j)} {word}"),
    ]


def _running_total(seconds: Floats) -> Floats:
    """Return the sums so far, in which a step of unknown length counts nothing; unknown if none is known."""
    if not np.isfinite(seconds).any():
        return np.full(len(seconds), np.nan)
    total: Floats = np.cumsum(np.nan_to_num(seconds))
    return total


def _losses_at(run: Run, spent: Floats, equal: float) -> tuple[str, str]:
    """Return the smoothed training loss and the validation loss that a run had for an amount."""
    kept = run.steps.kept
    paid = spent <= equal * (1 + _SAME)
    good = np.isfinite(kept.loss) & paid
    if not good.any():
        return MISSING, MISSING
    return f"{smooth_loss(kept.loss[good], kept.useful[good])[-1]:.4f}", _validation_at(run, spent, equal)


def _validation_at(run: Run, spent: Floats, equal: float) -> str:
    """Return the validation loss for an amount, or how far from it the nearest evaluation is.

    Between two evaluations it is interpolated, and lies between them unless the loss turned there. Before the
    first and after the last one nothing is known: theirs is given with the share of the amount that it had cost.
    """
    rows = {int(step): row for row, step in enumerate(run.steps.kept.step)}
    known = {
        float(spent[rows[one.step]]): one.loss
        for one in run.kept_evaluations
        if one.split == "validation" and one.loss is not None and one.step in rows
    }
    known = {at: loss for at, loss in sorted(known.items()) if np.isfinite(at)}
    before = [at for at in known if at <= equal * (1 + _SAME)]
    after = [at for at in known if at > equal * (1 + _SAME)]
    if not before:
        return (
            f"{known[after[0]]:.4f} at {100 * after[0] / equal:.3g} % of it, not evaluated before" if after else MISSING
        )
    last = known[before[-1]]
    if before[-1] >= equal * (1 - _SAME):
        return f"{last:.4f}"
    if not after:
        return f"{last:.4f} at {100 * before[-1] / equal:.3g} % of it, not evaluated after"
    share = (equal - before[-1]) / (after[0] - before[-1])
    next_ = known[after[0]]
    low, high = sorted((last, next_))
    return f"{last + share * (next_ - last):.4f} (interpolated, {low:.4f} to {high:.4f})"
