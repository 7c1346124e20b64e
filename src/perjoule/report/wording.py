"""How a run and its figures read as text; shared by terminal, Markdown and page, which escape it for themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from perjoule.core.units import J_PER_KWH, byte_size, duration, si
from perjoule.report.energy import ENERGY, IF_GIVEN
from perjoule.report.quantity import Distribution, Figure, Quantity, Unavailable
from perjoule.report.summary import LABELS, Summary, figures
from perjoule.report.what_ran import MISSING, device
from perjoule.runs.tables import Run

COMPARED = {
    "steps": "Steps",
    "wall_s": "Time",
    "step_s": "Time/step",
    "tokens_per_s": "Tokens/s",
    "loss_last": "Batch loss",
    "loss_validation": "Validation",
    "perplexity": "Perplexity",
    "mfu_full": "MFU",
    "memory_bytes": "Memory",
}
"""The figures of a comparison, in order, with headings short enough for a terminal; energy has rows of its own."""
LEADING = ("wall_s", "energy_j", "carbon_gco2e", "loss_validation", "tokens_per_s")
"""The five figures that a report begins with; what somebody gave a factor for follows (:func:`leading`)."""
BAR_CAPTION = "Mean over the steps of the measured window, evaluations and checkpoints included."
NO_DIFFERENCE = "Every configuration value is the same."
_SYMBOLS = {"J": "J", "W": "W", "FLOP/J": "FLOP/J", "FLOP/s": "FLOP/s", "l": "l", "gCO2e": "g CO2e"}
"""Units of energy and what follows from it that take a prefix; money does not."""
PHASE_HEADINGS = ("Phase", "Time", "Share", "CPU time", "Mean", "Median", "p95", "Steps")


def show(figure: Figure | Distribution) -> str:
    """Return the value (of a distribution its median) with its unit and its provenance, or ``MISSING``."""
    word = figure.provenance if isinstance(figure, Quantity) else ""
    return f"{bare(figure)} {word}".rstrip()


def bare(figure: Figure | Distribution) -> str:
    """Return the value with its unit for a place where the provenance stands beside it already, or ``MISSING``."""
    if isinstance(figure, Unavailable):
        return MISSING
    if isinstance(figure, Distribution):
        return duration(figure.median_s)
    return _in_unit(figure.value, figure.unit)


def _in_unit(value: float, unit: str) -> str:
    match unit:
        case "s":
            return duration(value)
        case "B":
            return byte_size(value)
        case "J":
            return joules(value)
        case _ if unit in _SYMBOLS:
            return si(value, _SYMBOLS[unit])
        case "nats":
            return f"{value:.4f}"
        case "fraction":
            return percent(value)
        case "":
            return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"
        case _:
            return f"{f'{value:.3g}' if value < 1000 else si(value)} {unit}"


def joules(value: float) -> str:
    """Format an energy: ``1.23 kJ``; from 0.1 kWh on ``1.23 MJ (0.342 kWh)``."""
    kwh = value / J_PER_KWH
    if kwh < 0.1:
        return si(value, "J")
    return f"{si(value, 'J')} ({f'{kwh:.3g} kWh' if kwh < 1000 else si(kwh * 1000, 'Wh')})"


def between(low: float, high: float, unit: str) -> str:
    """Format an interval, both ends with the same prefix: ``1.1 to 1.3 kJ``."""
    if unit not in _SYMBOLS or high <= 0:
        return f"{low:.3g} to {high:.3g} {_SYMBOLS.get(unit, unit)}"
    number, _, prefixed = si(high, _SYMBOLS[unit]).partition(" ")
    below = f"{low / 1000.0 ** round(math.log(high / float(number), 1000)):.3g}"
    return f"{si(low, _SYMBOLS[unit]) if 'e' in below else below} to {number} {prefixed}"


def interval(figure: Figure) -> str:
    """Return the 95 % interval of a figure, or ``MISSING``."""
    if isinstance(figure, Unavailable) or figure.bounds is None:
        return MISSING
    return between(*figure.bounds, figure.unit)


def why(figure: Figure) -> str:
    """Return the interval of a figure and how it was obtained, or why there is none."""
    if isinstance(figure, Unavailable):
        return f"not available: {figure.reason}"
    how = f"{figure.how} (n = {figure.n:,})" if figure.n > 1 else figure.how
    return f"95 % interval {interval(figure)}; {how}" if figure.bounds else how


def percent(share: float) -> str:
    """Format a fraction of 1: ``12.3 %``."""
    return f"{share * 100:.3g} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def figure_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (name, value, how it was obtained) of every figure, the step time among them.

    Without any energy, its own line gives the reason for all the lines that depend on it.
    """
    without = ENERGY[1:] if isinstance(summary.energy_j, Unavailable) else ()
    shown = {
        name: figure
        for name, figure in figures(summary).items()
        if not (isinstance(figure, Unavailable) and (name in IF_GIVEN or name in without))
    }
    rows = [(LABELS[name], show(figure), why(figure)) for name, figure in shown.items()]
    step = summary.step_s
    if isinstance(step, Distribution):
        how = (
            f"median; mean {duration(step.mean_s)}, 95th percentile {duration(step.p95_s)}, "
            f"{duration(step.min_s)} to {duration(step.max_s)} (n = {step.n:,})"
        )
    else:
        how = why(step)
    before = list(LABELS).index("samples_per_s")
    return [*rows[:before], ("Time per step", show(step), how), *rows[before:]]


def leading(summary: Summary) -> tuple[str, ...]:
    """Return the names of the figures that a report begins with: five, and price or water if a factor was given."""
    return LEADING + tuple(name for name in IF_GIVEN if isinstance(getattr(summary, name), Quantity))


def leading_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (name, value, interval or reason) of the figures that a report begins with."""
    rows: list[tuple[str, str, str]] = []
    for name in leading(summary):
        figure: Figure = getattr(summary, name)
        beside = f"not available: {figure.reason}" if isinstance(figure, Unavailable) else ""
        if beside in (row[2] for row in rows):
            beside = ""  # carbon lacks what energy lacks
        if isinstance(figure, Quantity):
            beside = f"95 % interval {interval(figure)}" if figure.bounds else figure.how
        rows.append((LABELS[name], show(figure), beside))
    return rows


def phase_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the cells of the phase table, as under ``PHASE_HEADINGS``."""
    rows = []
    for cost in summary.phases:
        each = cost.per_step
        times: Sequence[str] = (MISSING, MISSING, MISSING, "0")
        if isinstance(each, Distribution):
            times = (duration(each.mean_s), duration(each.median_s), duration(each.p95_s), f"{each.n:,}")
        rows.append((cost.phase, duration(cost.wall_s), percent(cost.share), duration(cost.cpu_s), *times))
    return rows


def phase_caption(summary: Summary) -> str:
    """Return what the numbers of the phase table are over, and how they were obtained."""
    window, warmup = summary.window_s, summary.warmup_s
    if not summary.phases:
        return "No step was timed."
    if isinstance(window, Unavailable):
        over = "No step comes after the warm-up, so this is over every timed step, warm-up and compilation included."
    else:
        over = f"Over the {window.n:,} steps of the measured window, {duration(window.value)}."
        if isinstance(warmup, Quantity) and warmup.n:
            over += (
                f" {warmup.n:,} warm-up steps (compilation among them), {duration(warmup.value)}, are not among them."
            )
    return (
        f"{over} From {summary.phases[0].how}; p95: 95th percentile over the steps; CPU time is that of all threads "
        "and ranks. A phase does not include those nested in it, “other” is the rest of the step."
    )


def bar_label(summary: Summary, seconds: float) -> str:
    """Return what the bar of a run in a comparison is ``seconds`` long for."""
    included = ", warm-up included" if isinstance(summary.window_s, Unavailable) else ""
    return f"{duration(seconds)} per step{included}"


def rank_headings(summary: Summary) -> tuple[str, ...]:
    """Return the headings of the table of ranks; there must be one."""
    return ("Rank", *summary.ranks[0].wall_s, "CPU time", "Steps")


def rank_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the cells of the table of ranks: the seconds of each in every phase."""
    return [
        (f"{one.rank}", *map(duration, one.wall_s.values()), duration(one.cpu_s), f"{one.num_steps:,}")
        for one in summary.ranks
    ]


def rank_caption(summary: Summary) -> str:
    """Say in which phase the ranks differ most."""
    apart_s = {
        phase: max(one.wall_s[phase] for one in summary.ranks) - min(one.wall_s[phase] for one in summary.ranks)
        for phase in summary.ranks[0].wall_s
    }
    phase = max(apart_s, key=lambda name: apart_s[name])
    return (
        "The same steps, each rank by its own clock. A rank that is done early waits for the others where gradients "
        f"are exchanged. The ranks are furthest apart in {phase}: {duration(apart_s[phase])}."
    )


def headline(run: Run) -> str:
    """Return one line on what was trained: ``transformer, 5.26M weights · text, seq_len 256 · cpu``."""
    parts = []
    if run.fact("model", "kind"):
        weights = run.fact("model", "parameters")
        parts.append(f"{run.fact('model', 'kind')}" + (f", {weights:,} weights ({si(weights)})" if weights else ""))
    if run.fact("data", "kind"):
        seq_len = run.fact("data", "seq_len")
        parts.append(f"{run.fact('data', 'kind')}" + (f", seq_len {seq_len}" if seq_len else ""))
    devices = sorted({device(segment.facts) for segment in run.segments})
    return " · ".join([*parts, *devices])


def compared_rows(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return one row of cells per run: name, status, then the figures of ``COMPARED``."""
    return [
        (label, run.status, *(show(getattr(summary, name)).removesuffix(" tokens/s") for name in COMPARED))
        for label, run, summary in zip(labels, runs, summaries, strict=True)
    ]


def compared_headings() -> tuple[str, ...]:
    """Return the headings of the comparison table."""
    return ("Run", "Status", *COMPARED.values())


def compared_reasons(summaries: Sequence[Summary]) -> list[str]:
    """Return one line for every figure that is missing somewhere in a comparison, with the reasons."""
    lines = []
    for name, heading in {**COMPARED, "energy_j": LABELS["energy_j"]}.items():
        found = [getattr(summary, name) for summary in summaries]
        reasons = dict.fromkeys(figure.reason for figure in found if isinstance(figure, Unavailable))
        if reasons:
            lines.append(f"{heading} {MISSING} not available: {'; '.join(reasons)}")
    return lines


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return (key, value in each run) of the configuration values that are not the same in all runs.

    The name of a run is left out: it heads its column. A run whose configuration could not be read differs in nothing.
    """
    known = [number for number, run in enumerate(runs, start=1) if run.resolved]
    keys = dict.fromkeys(key for run in runs for key in run.resolved if key != "name")
    rows = [(key, *(_configured(run, key) for run in runs)) for key in keys]
    return [row for row in rows if len({row[number] for number in known}) > 1]


def _configured(run: Run, key: str) -> str:
    if key not in run.resolved:
        return MISSING
    value = run.resolved[key].get("value")
    return value if isinstance(value, str) else json.dumps(value)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run that no other run has."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
