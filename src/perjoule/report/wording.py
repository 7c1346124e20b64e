"""How a run and its figures read as text; shared by terminal, Markdown and page, which escape it for themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perjoule.core.units import byte_size, duration, si
from perjoule.report.summary import LABELS, Distribution, Figure, Summary, Unavailable, figures
from perjoule.runs.tables import Run

MISSING = "–"
"""What stands in a table where a figure is unavailable; the reason is given beside or below."""
COMPARED = {
    "steps": "Steps",
    "wall_s": "Time",
    "tokens_per_s": "Tokens/s",
    "loss_last": "Loss",
    "loss_validation": "Validation",
    "perplexity": "Perplexity",
    "mfu_full": "MFU",
    "memory_bytes": "Memory",
    "energy_j": "Energy",
}
"""The figures of a comparison, in order, with headings short enough for a terminal."""
PHASE_HEADINGS = ("Phase", "Time", "Share", "CPU time", "Mean", "Median", "95 %", "Steps")


def show(figure: Figure) -> str:
    """Return the value with its unit, or ``MISSING``."""
    if isinstance(figure, Unavailable):
        return MISSING
    value = figure.value
    match figure.unit:
        case "s":
            return duration(value)
        case "B":
            return byte_size(value)
        case "J":
            return si(value, "J")
        case "nats":
            return f"{value:.4f}"
        case "fraction":
            return percent(value)
        case "":
            return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"
        case unit:
            return f"{f'{value:.3g}' if value < 1000 else si(value)} {unit}"


def why(figure: Figure) -> str:
    """Return how a figure was obtained, or why there is none."""
    if isinstance(figure, Unavailable):
        return f"not available: {figure.reason}"
    return f"{figure.how} (n = {figure.n:,})" if figure.n > 1 else figure.how


def percent(share: float) -> str:
    """Format a fraction of 1: ``12.3 %``."""
    return f"{share * 100:.3g} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def figure_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (name, value, how it was obtained) of every figure, the step time among them."""
    rows = [(LABELS[name], show(figure), why(figure)) for name, figure in figures(summary).items()]
    step = summary.step_s
    if isinstance(step, Distribution):
        value = f"{duration(step.median_s)}"
        how = (
            f"median; mean {duration(step.mean_s)}, 95 % within {duration(step.p95_s)}, "
            f"{duration(step.min_s)} to {duration(step.max_s)} (n = {step.n:,})"
        )
    else:
        value, how = MISSING, why(step)
    return [*rows[:9], ("Time per step", value, how), *rows[9:]]


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
    """Return what the numbers of the phase table are."""
    how = summary.phases[0].how if summary.phases else "no step was timed"
    return (
        f"Time, share and CPU time (all threads and ranks): over every timed step. Mean, median and 95 %: per step "
        f"behind the warm-up. From {how}; a phase does not include those nested in it, “other” is the rest of the step."
    )


def headline(run: Run) -> str:
    """Return one line on what was trained: ``transformer, 5.26M weights · text, seq_len 256 · cpu``."""
    parts = []
    if run.fact("model", "kind"):
        weights = run.fact("model", "parameters")
        parts.append(f"{run.fact('model', 'kind')}" + (f", {si(weights)} weights" if weights else ""))
    if run.fact("data", "kind"):
        seq_len = run.fact("data", "seq_len")
        parts.append(f"{run.fact('data', 'kind')}" + (f", seq_len {seq_len}" if seq_len else ""))
    devices = sorted({_device(segment.facts) for segment in run.segments})
    return " · ".join([*parts, *devices])


def _device(facts: Mapping[str, Any]) -> str:
    world_size = int(facts.get("world_size") or 1)
    device = str(facts.get("device") or "unknown device")
    return f"{world_size} × {device}" if world_size > 1 else device


def facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, value) of what the manifest says of the run as a whole and of every segment."""
    rows = [("Folder", str(run.path)), ("Created", moment(run.manifest.get("created")))]
    if run.manifest.get("recipe"):
        rows.append(("Recipe", str(run.manifest["recipe"])))
    for section in ("model", "data"):
        content = run.manifest.get(section)
        if isinstance(content, Mapping):
            rows.append((section.capitalize(), _listing(content)))
    for segment in run.segments:
        known = segment.facts
        name = f"Segment {segment.number}"
        steps = f"steps {known.get('first_step', '?')} to {known.get('last_step', '?')}"
        started, ended = moment(known.get("started")), moment(known.get("ended"))
        rows.append(
            (name, f"{steps}, {known.get('warmup_steps', 0)} of warm-up; {started} – {ended}; {_device(known)}")
        )
        for key in ("host", "backend", "peak"):
            if isinstance(known.get(key), Mapping):
                rows.append((f"{name}, {key}", _listing(known[key])))
        parts_s = known.get("startup_s")
        if isinstance(parts_s, Mapping):
            listing = "; ".join(f"{part}: {duration(float(seconds))}" for part, seconds in parts_s.items())
            rows.append((f"{name}, start-up", listing))
    return rows


def moment(written: Any) -> str:
    """Format an ISO 8601 time of the manifest: ``2026-11-24 06:15:30``."""
    return str(written)[:19].replace("T", " ") if written else "unknown"


def _listing(content: Any) -> str:
    """Return nested facts on one line."""
    if isinstance(content, Mapping):
        return "; ".join(f"{key}: {_listing(value)}" for key, value in content.items())
    if isinstance(content, list):
        return ", ".join(_listing(value) for value in content)
    if isinstance(content, float):
        return f"{content:,.0f}" if content == round(content) else f"{content:.6g}"
    return f"{content:,}" if isinstance(content, int) and not isinstance(content, bool) else str(content)


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
    for name, heading in COMPARED.items():
        found = [getattr(summary, name) for summary in summaries]
        reasons = dict.fromkeys(figure.reason for figure in found if isinstance(figure, Unavailable))
        if reasons:
            lines.append(f"{heading} {MISSING} not available: {'; '.join(reasons)}")
    return lines


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run that no other run has."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
