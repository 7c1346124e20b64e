"""Write one run, or a comparison of several, as one HTML file that needs nothing else.

The file holds no script and asks for nothing over the network; its policy forbids both, and allows exactly the one
style sheet in it, by hash, so that nothing a run says could add another. Everything a run says is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from perjoule.report import elements, energy_page, wording
from perjoule.report.charts import comparison_charts, phase_bar, phase_colors, run_charts, seconds_per_step
from perjoule.report.equal_terms import EQUAL_TERMS, equal_rows, size_rows
from perjoule.report.quantity import Quantity, Unavailable
from perjoule.report.summary import LABELS, Summary
from perjoule.report.what_ran import Block, Entry, blocks
from perjoule.runs.machine_load import busy_lines
from perjoule.runs.tables import Run

PLACE_LINK = ' <a href="#place">How to set a place</a>'


def run_page(run: Run, summary: Summary) -> str:
    """Return the report of one run as HTML."""
    colors = phase_colors([summary])
    phases = ""
    if summary.phases:
        phases = elements.section(
            "Where the time went",
            f'<figure class="card wide">{phase_bar(summary, colors)}{_phase_table(summary, colors)}'
            f"<p class=note>{elements.prose(wording.phase_caption(summary))}</p></figure>",
        )
    ranks = ""
    if summary.ranks:
        table = elements.table(wording.rank_headings(summary), wording.rank_rows(summary), "Ranks", "l")
        note = f"<p class=note>{elements.prose(wording.rank_caption(summary))}</p>"
        ranks = elements.section("Rank by rank", f'<div class="card wide">{table}{note}</div>')
    body = [
        _header(run.name, run.status, run.reason, wording.headline(run)),
        _warnings((*run.warnings, *busy_lines(run))),
        _tiles(summary),
        phases,
        ranks,
        energy_page.ledgers(run, summary, colors),
        elements.section(
            "Curves", f"<div class=charts>{''.join(map(elements.figure, run_charts(run, summary)))}</div>"
        ),
        elements.section("Every figure, and how it was obtained", _figure_table(summary)),
        elements.section("What ran", f"<div class=blocks>{''.join(map(_block, blocks(run)))}</div>"),
        _configuration(run),
        _place(run, summary),
    ]
    return _document(run.name, "".join(body))


def comparison_page(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the comparison of several runs as HTML."""
    colors = phase_colors(summaries)
    reasons = "".join(f"<p class=note>{elements.prose(line)}</p>" for line in wording.compared_reasons(summaries))
    table = elements.table(
        wording.compared_headings(), wording.compared_rows(labels, runs, summaries), "Comparison", "ll"
    )
    rows = [*size_rows(runs), *equal_rows(runs, summaries)]
    equal = elements.table(("Figure", *labels), rows, EQUAL_TERMS, "l")
    longest = max(map(seconds_per_step, summaries))
    bars = "".join(
        f"<p class=barname><span>{escape(label)}</span>"
        f"<span>{wording.bar_label(summary, seconds_per_step(summary))}</span></p>"
        f"{phase_bar(summary, colors, longest, seconds_per_step(summary))}"
        for label, summary in zip(labels, summaries, strict=True)
        if summary.phases
    )
    body = [
        _header("Comparison", "", "", f"{len(runs)} runs"),
        _warnings([f"{run.name}: {warning}" for run in runs for warning in (*run.warnings, *busy_lines(run))]),
        elements.section("Figures", f'<div class="card wide">{table}{reasons}</div>'),
        elements.section(EQUAL_TERMS, f'<div class="card wide">{equal}</div>') if rows else "",
        energy_page.compared(labels, summaries, colors),
        elements.section(
            "Loss",
            f"<div class=charts>{''.join(map(elements.figure, comparison_charts(labels, runs, summaries)))}</div>",
        ),
    ]
    if bars:
        note = f"<p class=note>{wording.BAR_CAPTION}</p>"
        timed = dict.fromkeys(cost.phase for summary in summaries for cost in summary.phases)
        legend = elements.legend([(colors[phase], phase) for phase in timed])
        body.append(elements.section("Where the time went", f'<figure class="card wide">{legend}{bars}{note}</figure>'))
    body.append(elements.section("What differs in the configuration", _differences(labels, runs)))
    return _document("Comparison", "".join(body))


def _document(title: str, body: str) -> str:
    style = files("perjoule.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{escape(title)} · perjoule</title><style>{style}</style></head>'
        f"<body><main>{body}</main><footer>perjoule · train it, and know what it cost</footer></body></html>\n"
    )


def _header(title: str, status: str, reason: str, line: str) -> str:
    badge = f'<span class="badge {escape(status)}">{escape(status)}</span>' if status else ""
    return (
        f"<header><h1>{escape(title)}</h1><p>{badge} {escape(reason)}</p><p class=headline>{escape(line)}</p></header>"
    )


def _warnings(warnings: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<ul class="card warnings">{items}</ul>' if items else ""


def _tiles(summary: Summary) -> str:
    tiles = []
    for name in wording.leading(summary):
        figure = getattr(summary, name)
        missing = isinstance(figure, Unavailable)
        value = "not available" if missing else wording.bare(figure).removesuffix(" tokens/s")
        beneath = figure.reason if isinstance(figure, Unavailable) else _beneath(name, summary)
        css = "tile missing" if missing else "tile"
        link = PLACE_LINK if missing and name == "carbon_gco2e" and summary.sheets else ""
        tiles.append(
            f'<div class="{css}"><dt>{LABELS[name]}</dt>'
            f"<dd>{escape(value)}<small>{escape(beneath)}{link}</small></dd></div>"
        )
    return f"<dl class=tiles>{''.join(tiles)}</dl>"


def _beneath(name: str, summary: Summary) -> str:
    """Return what stands in small print under a tile's value."""
    match name:
        case "wall_s":
            warmup = summary.warmup_s
            within = f", {wording.show(warmup)} of it warm-up" if isinstance(warmup, Quantity) and warmup.n else ""
            return f"{wording.show(summary.steps)} steps{within}; start-up {wording.show(summary.startup_s)}"
        case "tokens_per_s":
            return f"MFU {wording.show(summary.mfu_full)}, {wording.show(summary.flops_per_s)}"
        case "loss_validation":
            return f"perplexity {wording.show(summary.perplexity)}"
        case "energy_j" | "carbon_gco2e" | "water_l" | "price":
            figure = getattr(summary, name)
            return f"{figure.provenance}, 95 % interval {wording.interval(figure)}"
        case _:
            figure = getattr(summary, name)
            return "" if isinstance(figure, Unavailable) else figure.how


def _phase_table(summary: Summary, colors: dict[str, str]) -> str:
    rows = wording.phase_rows(summary)
    return elements.table(wording.PHASE_HEADINGS, rows, "Phases", "l", [colors[row[0]] for row in rows])


def _figure_table(summary: Summary) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class=value>{escape(value)}</td>'
        f"<td class=how>{elements.prose(how)}</td></tr>"
        for name, value, how in wording.figure_rows(summary)
    )
    return f'<table class="card figures"><tbody>{rows}</tbody></table>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="card pairs">{items}</dl>'


def _block(block: Block) -> str:
    """Return a card with the facts about one thing; one that holds more than short facts is as wide as the page."""
    entries = "".join(f"<div><dt>{escape(one.name)}</dt><dd>{_value(one)}</dd></div>" for one in block.entries)
    grids = "".join(elements.table(grid.headings, grid.rows, grid.headings[0], "l") for grid in block.grids)
    listings = "".join(
        f"<p>{escape(one.name)}</p><ul>{''.join(f'<li>{escape(item)}</li>' for item in one.items)}</ul>"
        for one in block.listings
    )
    css = "card wide" if block.grids or block.listings else "card"
    heading = f"<h3>{escape(block.title)}</h3>"
    return f'<article class="{css}">{heading}<dl class="pairs">{entries}</dl>{grids}{listings}</article>'


def _value(entry: Entry) -> str:
    title = f' title="{escape(entry.full)}"' if entry.full else ""
    return f"<code{title}>{escape(entry.text)}</code>" if entry.code else escape(entry.text)


def _place(run: Run, summary: Summary) -> str:
    """Return how to say where the electricity was from, if nobody has."""
    if not (isinstance(summary.carbon_gco2e, Unavailable) and summary.sheets):
        return ""
    command = f"perjoule report {shlex.quote(str(run.path))} carbon.location=DEU"
    return (
        '<section id="place"><h2>Carbon: where the electricity was from</h2><p class=note>Nothing is guessed from the '
        "network. Name the place, also after the run: a country (DEU, Germany), a region (USA-california), or a "
        "figure of your own (carbon.intensity_g_per_kwh=…); carbon.price_per_kwh=… carbon.currency=EUR adds the "
        f"price.</p><p class=note><code>{escape(command)}</code></p></section>"
    )


def _differences(labels: Sequence[str], runs: Sequence[Run]) -> str:
    rows = wording.differences(runs)
    if not rows:
        return f"<p class=note>{wording.NO_DIFFERENCE}</p>"
    table = elements.table(("Key", *labels), rows, "What differs in the configuration", "l" * (len(labels) + 1))
    return f'<div class="card wide">{table}</div>'


def _configuration(run: Run) -> str:
    if not run.resolved:
        return ""
    pairs = [(key, f"{entry.get('value')}  ({entry.get('source', 'unknown')})") for key, entry in run.resolved.items()]
    title = f"Configuration, {len(pairs)} values and their sources"
    return f"<section><details><summary>{title}</summary>{_pairs(pairs)}</details></section>"
