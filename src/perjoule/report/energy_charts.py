"""Which drawings of energy a report has: power against time, the ledger as bars, loss against joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perjoule.core.units import si
from perjoule.measure.ledger import PROVENANCE, Bucket, Tier, Timeline
from perjoule.report import wording
from perjoule.report.charts import Chart, joules_chart
from perjoule.report.energy import MEASURED, UJ_PER_J, Sheet
from perjoule.report.energy_figures import Part, energy_bar
from perjoule.report.figures import Floats, Line, Strip, color, line_chart, plain
from perjoule.report.ledger_table import ledger_title
from perjoule.report.quantity import Quantity
from perjoule.report.summary import Summary
from perjoule.runs.tables import Run

_MAX_BINS = 120
"""Of the strip of phases; the line of power keeps all of its own."""
_ORDER = list(Tier)
_PER_UNIT = ("energy_per_token_j", "energy_per_sample_j", "energy_per_step_j")


def energy_charts(run: Run, summary: Summary, colors: Mapping[str, str]) -> list[Chart]:
    """Return the drawings of one run that have something to show."""
    charts = [power_chart(sheet, summary, colors) for sheet in summary.sheets if sheet.counted]
    return [chart for chart in [*charts, joules_chart(run, summary)] if chart.svg]


def power_chart(sheet: Sheet, summary: Summary, colors: Mapping[str, str]) -> Chart:
    """Draw the power of a domain against time, above a strip with the phases that ran."""
    title = f"Power of {ledger_title(sheet, summary)}"
    line, grouped = sheet.account.timeline, _grouped(sheet.account.timeline)
    if not len(line.power_w):
        return Chart(title, "")
    middle_s = (line.edges_s[1:] + line.edges_s[:-1]) / 2
    gaps = np.flatnonzero(np.diff(np.isfinite(line.power_w).astype(np.int8))) + 1
    pieces = zip(np.split(middle_s, gaps), np.split(line.power_w, gaps), strict=True)
    lines = [Line(x, y, "ink") for x, y in pieces]
    present = [name for name in colors if name in grouped.shares and grouped.shares[name].any()]
    strip = Strip(grouped.edges_s, [(colors[name], grouped.shares[name]) for name in present])
    svg = line_chart(
        lines, title, "seconds", x_format=plain, y_format=lambda value: si(value, "W"), from_zero=True, strip=strip
    )
    legend = tuple((colors[name], name) for name in present)
    words = ["line: mean power; strip: which phases ran, not what each of them used"]
    if len(gaps):
        words.append("no line: no reading")
    if sheet.num_segments > 1:
        words.append("the last segment")
    return Chart(title, svg, legend, "; ".join(words))


def _grouped(timeline: Timeline) -> Timeline:
    """Return a timeline with at most ``_MAX_BINS`` bins for its shares; the power is left out."""
    num_bins = len(timeline.power_w)
    if num_bins <= _MAX_BINS:
        return timeline
    edges = np.linspace(0, num_bins, _MAX_BINS + 1).astype(np.int64)
    width_s = np.diff(timeline.edges_s)
    total_s = np.add.reduceat(width_s, edges[:-1])
    shares: dict[str, Floats] = {
        name: np.add.reduceat(one * width_s, edges[:-1]) / total_s for name, one in timeline.shares.items()
    }
    return Timeline(timeline.edges_s[edges], np.empty(0), shares)


def ledger_bar(sheet: Sheet, colors: Mapping[str, str]) -> str:
    """Draw the buckets of a domain one behind the other, with the interval of their sum."""
    account = sheet.account
    spoken = ", ".join(_spoken(bucket) for bucket in account.buckets)
    parts = [Part(bucket.energy_uj, colors[bucket.name], bucket.tier) for bucket in account.buckets]
    ends = account.low_uj, account.high_uj
    return energy_bar(parts, f"Energy of {account.sensor.domain}: {spoken}", account.high_uj, 0.0, ends, long=True)


def bucket_bars(sheet: Sheet, colors: Mapping[str, str]) -> list[str]:
    """Draw every bucket of a domain by itself, where it begins in the whole, with its interval."""
    buckets = sheet.account.buckets
    begins_uj = np.cumsum([0, *(one.energy_uj for one in buckets)])[:-1].tolist()
    placed = list(zip(buckets, begins_uj, strict=True))
    longest_uj = max((begin + one.high_uj for one, begin in placed), default=0)
    return [
        energy_bar(
            [Part(one.energy_uj, colors[one.name], one.tier)],
            _spoken(one),
            longest_uj,
            begin,
            (begin + one.low_uj, begin + one.high_uj),
        )
        for one, begin in placed
    ]


def run_bars(summaries: Sequence[Summary], colors: Mapping[str, str]) -> list[str]:
    """Draw for each run the buckets of all its counted domains as one bar, all to one scale; "" for one without energy.

    A bucket to which several domains add is hatched as the least trustworthy of them.
    """
    ends_j = [_bounds_j(summary) for summary in summaries]
    longest_j = max((ends[1] for ends in ends_j if ends), default=0.0)
    bars = []
    for summary, ends in zip(summaries, ends_j, strict=True):
        parts: dict[str, Part] = {}
        for bucket in (one for sheet in summary.sheets if sheet.counted for one in sheet.account.buckets):
            before = parts.get(bucket.name, Part(0.0, colors[bucket.name], Tier.DIRECT))
            tier = max(before.tier, bucket.tier, key=_ORDER.index)
            parts[bucket.name] = Part(before.size + bucket.energy_uj / UJ_PER_J, before.color, tier)
        ordered = [parts[name] for name in colors if name in parts]
        spoken = "Energy: " + ", ".join(f"{name} {si(parts[name].size, 'J')}" for name in colors if name in parts)
        bars.append(energy_bar(ordered, spoken, longest_j, 0.0, ends, long=True) if ordered else "")
    return bars


def _bounds_j(summary: Summary) -> tuple[float, float] | None:
    return summary.energy_j.bounds if isinstance(summary.energy_j, Quantity) else None


def unit_figure(summaries: Sequence[Summary]) -> str:
    """Return the name of the finest figure that all runs have: energy per token, sample or step; "" if none."""
    return next(
        (name for name in _PER_UNIT if all(isinstance(getattr(one, name), Quantity) for one in summaries)),
        "",
    )


def unit_bars(name: str, summaries: Sequence[Summary]) -> list[str]:
    """Draw a figure that all runs have as one bar with its interval per run, all to one scale."""
    found = [figure for one in summaries for figure in [getattr(one, name)] if isinstance(figure, Quantity)]
    longest = max((figure.bounds or (0.0, figure.value))[1] for figure in found)
    return [
        energy_bar(
            [Part(figure.value, color(index), Tier.DIRECT if figure.provenance == MEASURED else Tier.MODELLED)],
            f"{wording.show(figure)}, 95 %: {wording.interval(figure)}",
            longest,
            0.0,
            figure.bounds,
            long=True,
        )
        for index, figure in enumerate(found)
    ]


def _spoken(bucket: Bucket) -> str:
    return f"{bucket.name} {si(bucket.energy_uj / UJ_PER_J, 'J')} {PROVENANCE[bucket.tier]}"
