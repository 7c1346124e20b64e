"""Show runs as tables in a terminal. Nothing a run says is read as markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perjoule.report import energy_comparison, equal_terms, ledger_table, wording
from perjoule.report.summary import Summary
from perjoule.runs.machine_load import busy_lines
from perjoule.runs.tables import Run

_RUNS_BESIDE, _RANKS_BESIDE = 4, 6
_WIDE = 100
"""A terminal with fewer columns shows ledgers without what can be computed from the rest."""
_STATUS_STYLE = {"finished": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def print_run(console: Console, run: Run, summary: Summary) -> None:
    """Print the figures and the phases of one run."""
    console.print(
        Text.assemble((run.name, "bold"), "  ", (run.status, _STATUS_STYLE.get(run.status, "")), "  ", run.reason)
    )
    console.print(Text(wording.headline(run), "dim"))
    console.print()
    table = _table(("Figure", "Value", "How it was obtained"), "lrl")
    for row in wording.figure_rows(summary):
        table.add_row(Text(row[0]), Text(row[1], "bold"), Text(row[2], "dim"))
    console.print(table)
    phases = wording.phase_rows(summary)
    if phases:
        console.print()
        table = _table(wording.PHASE_HEADINGS, "l" + "r" * 7)
        for cells in phases:
            table.add_row(*map(Text, cells))
        console.print(table)
        console.print(Text(wording.phase_caption(summary), "dim"))
    if summary.ranks:
        console.print()
        _print_ranks(console, summary)
    _print_ledgers(console, summary)
    print_warnings(console, run)


def _print_ledgers(console: Console, summary: Summary) -> None:
    """Print the ledger of every domain; reasons that several buckets share stand below all of them, once."""
    notes: dict[str, int] = {}
    narrow = console.width < _WIDE
    for sheet in summary.sheets:
        headings, rows = ledger_table.footnoted(sheet, notes, narrow)
        table = _table(headings, ledger_table.sides(headings))
        for cells in rows:
            table.add_row(*map(Text, cells))
        console.print()
        console.print(Text(ledger_table.ledger_title(sheet, summary)))
        console.print(table)
        console.print(Text(ledger_table.ledger_caption(sheet), "dim"))
    if notes:
        console.print()
    for text, number in notes.items():
        console.print(Text(f"[{number}] {text}", "dim"))
    for line in ledger_table.provenance_key([summary]):
        console.print(Text(line, "dim"))
    for line in ledger_table.not_metered(summary):
        console.print(Text(line, "dim"))


def _print_ranks(console: Console, summary: Summary) -> None:
    """Print one column per rank, a few of them side by side at a time."""
    names, rows = wording.rank_headings(summary), wording.rank_rows(summary)
    for start in range(0, len(rows), _RANKS_BESIDE):
        beside = rows[start : start + _RANKS_BESIDE]
        table = _table((names[0], *(row[0] for row in beside)), "l" + "r" * len(beside))
        for number, name in enumerate(names[1:], start=1):
            table.add_row(Text(name), *(Text(row[number]) for row in beside))
        console.print(table)
    console.print(Text(wording.rank_caption(summary), "dim"))


def print_comparison(
    console: Console, labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]
) -> None:
    """Print one column per run, a few of them side by side at a time: figures, energy, configuration that differs."""
    names, rows = wording.compared_headings(), wording.compared_rows(labels, runs, summaries)
    different = wording.differences(runs)
    equal = [*equal_terms.size_rows(runs), *equal_terms.equal_rows(runs, summaries)]
    for start in range(0, len(rows), _RUNS_BESIDE):
        beside = rows[start : start + _RUNS_BESIDE]
        table = _table(("", *(row[0] for row in beside)), "l" + "r" * len(beside))
        table.add_row(names[1], *(Text(row[1], _STATUS_STYLE.get(row[1], "")) for row in beside))
        for number, name in enumerate(names[2:], start=2):
            table.add_row(name, *(Text(row[number]) for row in beside))
        for key, *values in [*equal, *energy_comparison.energy_rows(summaries), *different]:
            table.add_row(Text(key), *map(Text, values[start : start + _RUNS_BESIDE]))
        console.print(table)
        console.print()
    for line in [*wording.compared_reasons(summaries), *energy_comparison.verdicts(labels, summaries)]:
        console.print(Text(line, "dim"))
    for run in runs:
        print_warnings(console, run)


def print_warnings(console: Console, run: Run) -> None:
    """Print what could not be read, and that the machine was busy."""
    for warning in (*run.warnings, *busy_lines(run)):
        console.print(Text(f"warning: {run.name}: {warning}", "yellow"))


def _table(headings: Sequence[str], sides: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading, side in zip(headings, sides, strict=True):
        table.add_column(Text(heading), justify="right" if side == "r" else "left", overflow="fold")
    return table
