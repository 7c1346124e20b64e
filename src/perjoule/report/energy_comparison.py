"""Several runs by what they cost in energy: rows of figures, and what can be told apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from perjoule.report import wording
from perjoule.report.quantity import Figure, Quantity
from perjoule.report.summary import LABELS, Summary

COMPARED = (
    *("energy_j", "energy_per_step_j", "energy_per_sample_j", "energy_per_token_j", "power_w", "flops_per_j"),
    *("carbon_gco2e", "price"),
)
_JUDGED = ("energy_j", "energy_per_step_j", "energy_per_sample_j", "energy_per_token_j", "carbon_gco2e")


def energy_rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return a row per figure, its name and its value in each run, each followed by a row of intervals.

    What none of the runs has is left out; without any energy there is no row.
    """
    rows: list[tuple[str, ...]] = []
    for name in COMPARED:
        found: list[Figure] = [getattr(summary, name) for summary in summaries]
        if any(isinstance(figure, Quantity) for figure in found):
            rows.append((LABELS[name], *map(wording.show, found)))
            rows.append(("95 % interval", *map(wording.interval, found)))
    return rows


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
            shared = [
                one for one in known if _same_sensors(summaries[labels.index(one)], summaries[labels.index(least)])
            ]
            verdict = _verdict(least, known, shared)
            said[verdict] = [*said[verdict], label[0].lower() + label[1:]] if verdict in said else [label]
    scope = _scope(labels, summaries)
    return [scope] * bool(scope) + [f"{', '.join(names)}: {verdict}." for verdict, names in said.items()]


def _same_sensors(one: Summary, other: Summary) -> bool:
    """Tell whether two runs were metered by the same sensors of the same machines."""
    first, second = (
        sorted((sheet.account.node, sheet.account.sensor.domain, sheet.account.sensor.method) for sheet in run.sheets)
        for run in (one, other)
    )
    return first == second


def _verdict(least: str, bounds: Mapping[str, tuple[float, float]], shared: Collection[str]) -> str:
    """Compare every run with the one that used least.

    What is uncertain about a sensor is the same for all runs that it metered, so that of two such runs the low ends
    belong together, and the high ends. Runs of different sensors are compared by the ends that lie farthest apart.
    """
    low, high = bounds[least]
    others = {label: ends for label, ends in bounds.items() if label != least}
    together = {label: both for label, both in others.items() if label in shared and low > 0}
    others = {label: ends for label, ends in others.items() if label not in together}
    same = [label for label, (other_low, _) in others.items() if other_low <= high]
    words = [f"least in {least}"]
    if same:
        words.append(f"{', '.join(same)} cannot be told apart from it, the 95 % intervals overlap")
    for label, (other_low, other_high) in together.items():
        ends = [f"{one:.3g}" for one in sorted((other_low / low, other_high / high))]
        ratio = " to ".join(dict.fromkeys(ends))
        much = "as much" if ratio == "1" else f"{ratio} times as much"
        words.append(f"{label} {much}, by the same sensors, whose common error cancels")
    for label, (other_low, other_high) in others.items():
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
