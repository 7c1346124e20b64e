"""The parts of the page that are about energy: ledgers as tables and bars, power, and runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from perjoule.report import elements, wording
from perjoule.report.energy import Sheet
from perjoule.report.energy_charts import bucket_bars, energy_charts, ledger_bar, run_bars, unit_bars, unit_figure
from perjoule.report.energy_comparison import energy_rows, verdicts
from perjoule.report.ledger_table import (
    ledger_caption,
    ledger_headings,
    ledger_rows,
    ledger_title,
    not_metered,
    provenance_key,
    sides,
    tiers,
)
from perjoule.report.summary import LABELS, Summary
from perjoule.runs.tables import Run

UNIT_CAPTION = "Over the measured window; the whisker is the 95 % interval."
TOTAL_CAPTION = "Everything that was metered, start-up included; the whisker is the 95 % interval of the sum."


def ledgers(run: Run, summary: Summary, colors: Mapping[str, str]) -> str:
    """Return the ledger of every domain, and the drawings of energy."""
    if not summary.sheets:
        return ""
    cards = [_ledger(sheet, summary, colors) for sheet in summary.sheets]
    lines = "".join(f"<p class=note>{elements.prose(line)}</p>" for line in not_metered(summary))
    drawings = "".join(map(elements.figure, energy_charts(run, summary, colors)))
    return elements.section(
        "Where the energy went",
        f"{_hatch_legend([summary])}<div class=ledgers>{''.join(cards)}</div>{lines}",
    ) + elements.section("Power, and loss by energy", f"<div class=charts>{drawings}</div>")


def _ledger(sheet: Sheet, summary: Summary, colors: Mapping[str, str]) -> str:
    title, rows, headings = ledger_title(sheet, summary), ledger_rows(sheet), ledger_headings(sheet)
    marks = [colors.get(row[0], "") for row in rows]
    table = elements.table(headings, rows, title, sides(headings), marks, bucket_bars(sheet, colors))
    return (
        f'<figure class="card wide"><figcaption>{escape(title)}</figcaption>'
        f"{ledger_bar(sheet, colors)}{table}<p class=note>{elements.prose(ledger_caption(sheet))}</p></figure>"
    )


def _hatch_legend(summaries: Sequence[Summary]) -> str:
    """Return which hatching stands for which word of provenance, and what the words mean."""
    items = "".join(
        f'<li><i class="hatched {tier}"></i><span>{escape(meaning)}</span></li>'
        for tier, meaning in zip(tiers(summaries), provenance_key(summaries), strict=True)
    )
    return f'<ul class="legend key">{items}</ul>'


def compared(labels: Sequence[str], summaries: Sequence[Summary], colors: Mapping[str, str]) -> str:
    """Return what the runs cost in energy, and what can be told apart."""
    rows = energy_rows(summaries)
    if not rows:
        return ""
    lines = "".join(f"<p class=note>{elements.prose(line)}</p>" for line in verdicts(labels, summaries))
    content = f'<div class="card wide">{elements.table(("Figure", *labels), rows, "Energy", "l")}{lines}</div>'
    unit = unit_figure(summaries)
    if unit:
        content += _bars(unit, "", labels, summaries, unit_bars(unit, summaries), UNIT_CAPTION)
    legend = elements.legend((css, name) for name, css in _metered(summaries, colors).items())
    content += _bars("energy_j", legend, labels, summaries, run_bars(summaries, colors), TOTAL_CAPTION)
    content += f'<div class="card wide">{_hatch_legend(summaries)}</div>'
    return elements.section("Energy", f"<div class=ledgers>{content}</div>")


def _metered(summaries: Sequence[Summary], colors: Mapping[str, str]) -> dict[str, str]:
    names = {bucket.name for one in summaries for sheet in one.sheets for bucket in sheet.account.buckets}
    return {name: css for name, css in colors.items() if name in names}


def _bars(
    name: str, legend: str, labels: Sequence[str], summaries: Sequence[Summary], bars: Sequence[str], caption: str
) -> str:
    """Return a card with a figure of every run as a bar below its name and value; without a bar these stand alone."""
    rows = "".join(
        f"<p class=barname><span>{escape(label)}</span><span>{escape(wording.show(getattr(summary, name)))}</span></p>"
        f"{bar}"
        for label, summary, bar in zip(labels, summaries, bars, strict=True)
    )
    return (
        f'<figure class="card wide"><figcaption>{escape(LABELS[name])}</figcaption>{legend}{rows}'
        f"<p class=note>{elements.prose(caption)}</p></figure>"
    )
