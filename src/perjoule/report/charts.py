"""Which drawings a report has: pure functions from runs to :class:`Chart`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from perjoule.core.phases import ON_SCHEDULE, OTHER, TRAINING
from perjoule.core.units import byte_size, duration, si
from perjoule.measure.ledger import MONITOR, UNKNOWN
from perjoule.measure.occupancy import OUTSIDE
from perjoule.report.figures import (
    NUM_COLORS,
    Line,
    color,
    histogram,
    line_chart,
    plain,
    smooth,
    smooth_loss,
    stacked_bar,
)
from perjoule.report.quantity import Distribution, Quantity
from perjoule.report.summary import Summary
from perjoule.runs.step_table import StepTable
from perjoule.runs.tables import Run

_TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0))
JOULES = "energy, start-up included"
_FEW_POINTS = 60
"""Up to here a curve is drawn as it is; above, faint, with a smoothed line over it."""


@dataclass(frozen=True)
class Chart:
    """A drawing with what stands around it.

    Args:
        title: what it shows.
        svg: the drawing; "" if there is nothing to draw.
        legend: CSS class and name of each line or part.
        caption: what has to be known to read it.
    """

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    caption: str = ""


def run_charts(run: Run, summary: Summary) -> list[Chart]:
    """Return the drawings of one run that have something to show."""
    charts = [loss_chart(run), throughput_chart(run), step_time_chart(run, summary), memory_chart(run)]
    return [chart for chart in charts if chart.svg]


def loss_chart(run: Run) -> Chart:
    """Draw training and validation loss by step."""
    kept = run.steps.kept
    return _loss(run, kept, kept.step.astype(np.float64), "Loss", "step", si)


def joules_chart(run: Run, summary: Summary) -> Chart:
    """Draw training and validation loss by the energy that was used up to there."""
    good = np.isfinite(summary.cumulative_j)
    kept = run.steps.kept.where(good)
    chart = _loss(run, kept, summary.cumulative_j[good], "Loss by energy", JOULES, lambda value: si(value, "J"))
    return replace(chart, caption=f"energy: {energy_word(summary)}; {chart.caption}")


def energy_word(summary: Summary) -> str:
    """Return the provenance of a run's energy, "" without any."""
    return summary.energy_j.provenance if isinstance(summary.energy_j, Quantity) else ""


def _loss(
    run: Run, kept: StepTable, position: np.ndarray, title: str, axis: str, x_format: Callable[[float], str]
) -> Chart:
    """Draw training and validation loss.

    Args:
        run: the run.
        kept: the steps to draw.
        position: (num_steps,) where on the x axis each of them is.
        title: of the drawing.
        axis: name of the x axis.
        x_format: formats a tick of it.
    """
    lines = _losses(position, kept, "c0")
    legend = [("c0", "training, batch by batch")]
    validation = _validation(run, kept.step, position, "c1")
    if validation:
        lines += [replace(line, style="dots") for line in validation]
        legend.append(("c1", "validation"))
    num_bad = int(np.isinf(kept.loss).sum())
    smoothed = "faint: every step; solid: mean over the last 8 % of the steps" if len(lines) > len(legend) else ""
    bad = f"{num_bad:,} losses were not finite" if num_bad else ""
    top, above = _top(lines)
    caption = "; ".join(part for part in ("nats", smoothed, above, bad) if part)
    svg = line_chart(lines, f"{title} of {run.name}, by {axis}", axis, x_format=x_format, top=top)
    return Chart(title, svg, tuple(legend), caption)


def throughput_chart(run: Run) -> Chart:
    """Draw tokens (or, without tokens, samples) per second of training time by step."""
    steps = _timed(run.steps.kept)
    unit, counts = ("tokens", steps.tokens) if steps.tokens.any() else ("samples", steps.samples)
    x, y = steps.step.astype(np.float64), counts / steps.training_s
    lines = [Line(x, y, "c2", "line")]
    if len(x) > _FEW_POINTS:
        over_window = smooth(counts.astype(np.float64), steps.training_s)
        lines = [Line(x, y, "c2", "faint"), Line(x, over_window, "c2", "line")]
    svg = line_chart(
        lines, f"{unit} per second of {run.name} by step", "step", x_format=si, y_format=si, from_zero=True
    )
    return Chart(f"{unit.capitalize()} per second", svg, (), "training time only, warm-up included")


def step_time_chart(run: Run, summary: Summary) -> Chart:
    """Draw how the time per step spreads in the measured window."""
    spread = summary.step_s
    if not isinstance(spread, Distribution):
        return Chart("Time per step", "")
    seconds = run.steps.training_s[run.steps.in_window]
    markers = [(spread.median_s, "c1"), (spread.p95_s, "c3")]
    svg = histogram(seconds, f"Time per step of {run.name}", markers, lambda value: si(value, "s"))
    legend = (("c1", f"median {duration(spread.median_s)}"), ("c3", f"95th percentile {duration(spread.p95_s)}"))
    slow = int((seconds > np.quantile(seconds, 0.995)).sum())
    caption = (
        f"number of steps; not drawn: {slow:,} slower, up to {duration(spread.max_s)}" if slow else "number of steps"
    )
    return Chart("Time per step", svg, legend, caption)


def memory_chart(run: Run) -> Chart:
    """Draw the memory in use at the end of each step."""
    kept = run.steps.kept
    line = Line(kept.step.astype(np.float64), kept.memory_bytes, "c4", "line")
    svg = line_chart([line], f"Memory of {run.name} by step", "step", x_format=si, y_format=byte_size, from_zero=True)
    return Chart("Memory", svg, (), "in use at the end of each step")


def phase_colors(summaries: Sequence[Summary]) -> dict[str, str]:
    """Return a CSS class for every phase and every other bucket of the runs.

    A phase of training has the same one in every report; others take what is free.
    """
    timed = [cost.phase for summary in summaries for cost in summary.phases]
    accounts = [sheet.account for summary in summaries for sheet in summary.sheets]
    metered = [name for one in accounts for name in (*(bucket.name for bucket in one.buckets), *one.timeline.shares)]
    fixed = {OTHER: "grey", OUTSIDE: "outside", MONITOR: "monitor", UNKNOWN: "unknown"}
    names = dict.fromkeys(name for name in [*timed, *metered] if name not in fixed)
    own = {name: color(index) for index, name in enumerate((*TRAINING, *ON_SCHEDULE)) if name in names}
    free = cycle([css for css in map(color, range(NUM_COLORS)) if css not in own.values()])
    return {name: own[name] if name in own else next(free) for name in names} | fixed


def phase_bar(summary: Summary, colors: dict[str, str], whole: float = 1.0, scale: float = 1.0) -> str:
    """Draw the phases as one bar.

    Args:
        summary: the run's figures.
        colors: phase to CSS class.
        whole: the size that fills the width.
        scale: what a share of 1 is worth on that measure.
    """
    spoken = ", ".join(f"{cost.phase} {cost.share:.0%}" for cost in summary.phases)
    parts = [(cost.share * scale, colors[cost.phase]) for cost in summary.phases]
    return stacked_bar(parts, f"Share of the phases: {spoken}", whole)


def comparison_charts(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> list[Chart]:
    """Draw the losses of several runs over each other, training and validation: by step, tokens, seconds and joules."""
    longest_s = max(float(_timed(run.steps.kept).training_s.sum()) for run in runs)
    unit, unit_s = next(((name, size) for name, size in _TIME_UNITS if longest_s > 3 * size), ("seconds", 1.0))
    axes: list[tuple[str, Callable[[StepTable], np.ndarray], Callable[[float], str]]] = [
        ("step", lambda steps: steps.step.astype(np.float64), si),
        ("tokens", lambda steps: np.cumsum(steps.tokens).astype(np.float64), si),
        (f"{unit} of training", lambda steps: np.cumsum(steps.training_s) / unit_s, plain),
    ]
    charts = []
    for axis, position, x_format in axes:
        kept = [run.steps.kept if axis in ("step", "tokens") else _timed(run.steps.kept) for run in runs]
        charts.append(_compared(axis, labels, runs, [(one, position(one)) for one in kept], x_format))
    charts.append(_compared_by_energy(labels, runs, summaries))
    return [chart for chart in charts if chart.svg]


def _compared_by_energy(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> Chart:
    """Draw the losses of the runs that were metered by the energy that each had used."""
    positions = []
    for run, summary in zip(runs, summaries, strict=True):
        good = np.isfinite(summary.cumulative_j)
        positions.append((run.steps.kept.where(good), summary.cumulative_j[good]))
    chart = _compared(JOULES, labels, runs, positions, lambda value: si(value, "J"))
    words = [f"{label} {energy_word(one)}" for label, one in zip(labels, summaries, strict=True) if energy_word(one)]
    return replace(chart, caption=f"energy: {', '.join(words)}; {chart.caption}")


def _compared(
    axis: str,
    labels: Sequence[str],
    runs: Sequence[Run],
    positions: Sequence[tuple[StepTable, np.ndarray]],
    x_format: Callable[[float], str],
) -> Chart:
    """Draw the losses of several runs over one axis.

    Args:
        axis: its name.
        labels: one per run.
        runs: what is compared.
        positions: for each run the steps that are drawn, and where on the axis each of them is.
        x_format: formats a tick.
    """
    lines: list[Line] = []
    for index, (run, (steps, position)) in enumerate(zip(runs, positions, strict=True)):
        lines += _losses(position, steps, color(index))[-1:]
        lines += _validation(run, steps.step, position, color(index))
    top, above = _top(lines)
    svg = line_chart(lines, f"Loss by {axis}", axis, x_format=x_format, top=top)
    dashed = "dashed, with dots: validation" if any(line.style == "dashed" for line in lines) else ""
    words = ("nats", "solid: training, mean over the last 8 % of the steps", dashed, above)
    legend = tuple((color(index), label) for index, label in enumerate(labels) if len(positions[index][0]))
    return Chart(f"Loss by {axis}", svg, legend, "; ".join(part for part in words if part))


def seconds_per_step(summary: Summary) -> float:
    """Return the mean time of a counted step with all its phases, the length of a run's bar in a comparison."""
    counted = summary.window_s if isinstance(summary.window_s, Quantity) else summary.wall_s
    return counted.value / counted.n if isinstance(counted, Quantity) else 0.0


def _validation(run: Run, steps: np.ndarray, position: np.ndarray, css: str) -> list[Line]:
    """Return the line of the validation losses, each where the training was after its step."""
    evaluated = [one for one in run.kept_evaluations if one.split == "validation" and one.loss is not None]
    if not evaluated or not len(steps):
        return []
    rows = np.searchsorted(steps, [one.step for one in evaluated], side="right")
    y = np.array([one.loss for one in evaluated], np.float64)
    return [Line(np.concatenate([[0.0], position])[rows], y, css, "dashed")]


def _timed(steps: StepTable) -> StepTable:
    good = np.isfinite(steps.training_s) & (steps.training_s > 0)
    return steps.where(good)


def _top(lines: Sequence[Line]) -> tuple[float, str]:
    """Return where to cut off the steep start of long curves, which flattens all the rest, and the words for it."""
    points = [y for _, y in (line.finite() for line in lines)]
    late = [y[len(y) * 3 // 100 if len(y) > _FEW_POINTS else len(y) // 2 :] for y in points if len(y)]
    if max(map(len, points), default=0) <= _FEW_POINTS:
        return math.inf, ""
    top = max(float(y.max()) for y in late)
    highest = max(float(y.max()) for y in points if len(y))
    return (top, f"the start, up to {highest:.3g}, is not drawn") if highest > top else (math.inf, "")


def _losses(position: np.ndarray, steps: StepTable, css: str) -> list[Line]:
    """Return the line of batch losses, the raw one behind a smoothed one if there are many points."""
    good = np.isfinite(steps.loss)
    x, y = position[good], steps.loss[good]
    if len(x) <= _FEW_POINTS:
        return [Line(x, y, css, "line")]
    return [Line(x, y, css, "faint"), Line(x, smooth_loss(y, steps.useful[good]), css, "line")]
