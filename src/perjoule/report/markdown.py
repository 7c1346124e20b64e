"""Write runs as Markdown tables, for a lab note or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perjoule.report import energy_comparison, equal_terms, ledger_table, wording
from perjoule.report.summary import Summary
from perjoule.report.what_ran import Block, blocks
from perjoule.runs.machine_load import busy_lines
from perjoule.runs.tables import Run

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def run_markdown(run: Run, summary: Summary) -> str:
    """Return the report of one run."""
    lines = [f"# {escape(run.name)}", "", f"**{escape(run.status)}** {escape(run.reason)}".rstrip(), ""]
    lines += [escape(wording.headline(run)), ""]
    lines += [f"> {escape(warning)}\n" for warning in (*run.warnings, *busy_lines(run))]
    lines += ["## In short", "", *_table(("Figure", "Value", ""), wording.leading_rows(summary), "lrl"), ""]
    lines += [
        "## Every figure",
        "",
        *_table(("Figure", "Value", "How it was obtained"), wording.figure_rows(summary), "lrl"),
    ]
    if summary.phases:
        lines += ["", "## Where the time went", ""]
        lines += _table(wording.PHASE_HEADINGS, wording.phase_rows(summary), "l" + "r" * 7)
        lines += ["", escape(wording.phase_caption(summary))]
    if summary.ranks:
        headings = wording.rank_headings(summary)
        lines += ["", "## Ranks", "", *_table(headings, wording.rank_rows(summary), "r" * len(headings))]
        lines += ["", escape(wording.rank_caption(summary))]
    lines += _ledgers(summary)
    lines += ["", "## What ran", *(line for block in blocks(run) for line in _block(block))]
    if run.resolved:
        rows = [(key, str(one.get("value")), str(one.get("source", "unknown"))) for key, one in run.resolved.items()]
        lines += ["", "## Configuration", "", *_table(("Key", "Value", "Source"), rows, "lll")]
    return "\n".join(lines) + "\n"


def comparison_markdown(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the comparison of several runs."""
    headings = wording.compared_headings()
    rows = wording.compared_rows(labels, runs, summaries)
    lines = ["# Comparison", "", *_table(headings, rows, "ll" + "r" * (len(headings) - 2)), ""]
    lines += [f"- {escape(line)}" for line in wording.compared_reasons(summaries)]
    lines += [f"- {escape(run.name)}: {escape(one)}" for run in runs for one in (*run.warnings, *busy_lines(run))]
    equal = [*equal_terms.size_rows(runs), *equal_terms.equal_rows(runs, summaries)]
    if equal:
        lines += ["", f"## {equal_terms.EQUAL_TERMS}", ""]
        lines += _table(("Figure", *labels), equal, "l" + "r" * len(labels))
    energy = energy_comparison.energy_rows(summaries)
    if energy:
        lines += ["", "## Energy", "", *_table(("Figure", *labels), energy, "l" + "r" * len(labels)), ""]
        lines += [f"- {escape(line)}" for line in energy_comparison.verdicts(labels, summaries)]
    lines += ["", "## What differs in the configuration", ""]
    different = wording.differences(runs)
    lines += _table(("Key", *labels), different, "l" * (len(labels) + 1)) if different else [wording.NO_DIFFERENCE]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _ledgers(summary: Summary) -> list[str]:
    """Return the ledger of every domain, and what its words mean."""
    lines = ["", "## Where the energy went"] if summary.sheets else []
    for sheet in summary.sheets:
        headings = ledger_table.ledger_headings(sheet)
        lines += ["", f"### {escape(ledger_table.ledger_title(sheet, summary))}", ""]
        lines += _table(headings, ledger_table.ledger_rows(sheet), ledger_table.sides(headings))
        lines += ["", escape(ledger_table.ledger_caption(sheet))]
    words = [*ledger_table.provenance_key([summary]), *ledger_table.not_metered(summary)]
    return [*lines, "", *(f"- {escape(line)}" for line in words)] if summary.sheets else []


def _block(block: Block) -> list[str]:
    pairs = [(entry.name, entry.text) for entry in block.entries]
    lines = ["", f"### {escape(block.title)}", "", *_table(("What", "Value"), pairs, "ll")]
    for grid in block.grids:
        lines += ["", *_table(grid.headings, grid.rows, "l" + "r" * (len(grid.headings) - 1))]
    for listing in block.listings:
        lines += ["", f"{escape(listing.name)}:", "", *(f"- {escape(item)}" for item in listing.items)]
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    rule = ["---:" if side == "r" else "---" for side in sides]
    escaped = [[escape(cell) for cell in row] for row in (headings, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (escaped[0], rule, *escaped[1:])]
