"""Several runs by what they cost in energy: rows of figures, what can be told apart, and the loss at equal joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perjoule.report import wording
from perjoule.report.energy import PARTLY
from perjoule.report.figures import smooth
from perjoule.report.quantity import Figure, Quantity
from perjoule.report.summary import LABELS, Summary
from perjoule.report.what_ran import MISSING
from perjoule.runs.tables import Run

COMPARED = (
    *("energy_j", "energy_per_step_j", "energy_per_sample_j", "energy_per_token_j", "power_w", "flops_per_j"),
    *("carbon_gco2e", "price"),
)
_JUDGED = ("energy_j", "energy_per_step_j", "energy_per_sample_j", "energy_per_token_j", "carbon_gco2e")


def energy_rows(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return a row per figure, its name and its value in each run, each followed by a row of intervals.

    What none of the runs has is left out; without any energy there is no row.
    """
    rows: list[tuple[str, ...]] = []
    for name in COMPARED:
        found: list[Figure] = [getattr(summary, name) for summary in summaries]
        if any(isinstance(figure, Quantity) for figure in found):
            rows.append((LABELS[name], *map(wording.show, found)))
            rows.append(("95 %", *map(wording.interval, found)))
    equal_j = equal_energy_j(summaries)
    if equal_j is not None:
        at = [_losses_at(run, summary, equal_j) for run, summary in zip(runs, summaries, strict=True)]
        words = {summary.energy_j.provenance for summary in summaries if isinstance(summary.energy_j, Quantity)}
        word = words.pop() if len(words) == 1 else PARTLY
        rows.append((f"Loss at equal energy, {wording.joules(equal_j)} {word}", *(one for one, _ in at)))
        if any(validation != MISSING for _, validation in at):
            rows.append(("Best validation loss up to there", *(validation for _, validation in at)))
    return rows


def equal_energy_j(summaries: Sequence[Summary]) -> float | None:
    """Return the largest energy that every run reached; None unless all of at least two have one."""
    last_j = [summary.cumulative_j[-1] if len(summary.cumulative_j) else np.nan for summary in summaries]
    return float(min(last_j)) if len(last_j) > 1 and np.isfinite(last_j).all() else None


def _losses_at(run: Run, summary: Summary, equal_j: float) -> tuple[str, str]:
    """Return the smoothed training loss and the best validation loss that a run had reached for ``equal_j``."""
    kept = run.steps.kept
    good = np.isfinite(kept.loss) & (summary.cumulative_j <= equal_j)
    paid = kept.step[summary.cumulative_j <= equal_j]
    if not good.any():
        return MISSING, MISSING
    losses = [
        one.loss
        for one in run.kept_evaluations
        if one.split == "validation" and one.loss is not None and one.step <= paid[-1]
    ]
    return f"{smooth(kept.loss[good])[-1]:.4f}", f"{min(losses):.4f}" if losses else MISSING


def verdicts(labels: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    """Return for each figure which run used least and whether the others can be told apart from it.

    Figures of which the same can be said share a line.
    """
    said: dict[str, list[str]] = {}
    for name in _JUDGED:
        found = [(label, getattr(summary, name)) for label, summary in zip(labels, summaries, strict=True)]
        known = {label: one.bounds for label, one in found if isinstance(one, Quantity) and one.bounds}
        if len(known) > 1:
            least = min((one.value, label) for label, one in found if label in known)[1]
            label = LABELS[name]
            verdict = _verdict(least, known)
            said[verdict] = [*said[verdict], label[0].lower() + label[1:]] if verdict in said else [label]
    scope = _scope(labels, summaries)
    return [scope] * bool(scope) + [f"{', '.join(names)}: {verdict}." for verdict, names in said.items()]


def _verdict(least: str, bounds: Mapping[str, tuple[float, float]]) -> str:
    """Compare every run with the one that used least, by the ends of their intervals."""
    low, high = bounds[least]
    same = [label for label, (other_low, _) in bounds.items() if label != least and other_low <= high]
    words = [f"least in {least}"]
    if same:
        words.append(f"{', '.join(same)} cannot be told apart from it, the 95 % intervals overlap")
    for label, (other_low, other_high) in bounds.items():
        if other_low > high:
            most = f" to {other_high / low:.3g}" if low > 0 else " or more"
            fewest = f"{other_low / high:.3g}{most} times as much" if high > 0 else "more"
            words.append(f"{label} {fewest}")
    return "; ".join(words)


def _scope(labels: Sequence[str], summaries: Sequence[Summary]) -> str:
    """Return a warning if different parts of the machines were metered, otherwise ""."""
    metered = {
        label: sorted({f"{one.account.sensor.scope} ({one.provenance})" for one in summary.sheets if one.counted})
        for label, summary in zip(labels, summaries, strict=True)
    }
    known = {label: ", ".join(scopes) for label, scopes in metered.items() if scopes}
    if len(set(known.values())) <= 1:
        return ""
    parts = "; ".join(f"{label}: {scopes}" for label, scopes in known.items())
    return f"These energies are not of the same parts of a machine: {parts}."
