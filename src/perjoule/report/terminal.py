"""Show runs as tables in a terminal. Nothing a run says is read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perjoule.core.printable import printable
from perjoule.report import energy_comparison, equal_terms, ledger_table, wording
from perjoule.report.summary import Summary
from perjoule.runs.machine_load import busy_lines
from perjoule.runs.tables import Run

_RUNS_BESIDE, _RANKS_BESIDE = 4, 6
_KEY_WIDTH, _RUN_WIDTH = 34, 20
"""Columns for the name of a figure, and for its value in a run."""
_WIDE = 100
"""A terminal with fewer columns shows tables without what can be computed from the rest."""
_PHASES_WITHOUT = ("CPU time", "Steps")
_STATUS_STYLE = {"finished": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def print_run(console: Console, run: Run, summary: Summary) -> None:
    """Print the figures and the phases of one run."""
    title = (_text(run.name, "bold"), "  ", _text(run.status, _STATUS_STYLE.get(run.status, "")), "  ")
    console.print(Text.assemble(*title, _text(run.reason)))
    console.print(_text(wording.headline(run), "dim"))
    console.print()
    leading = wording.leading_rows(summary)
    table = _table(("Figure", "Value", ""), "lrl", [row[0] for row in leading])
    for row in leading:
        table.add_row(_text(row[0]), _text(row[1], "bold"), _text(row[2], "dim"))
    console.print(table)
    phases = wording.phase_rows(summary)
    if phases:
        console.print()
        shown = [
            number
            for number, heading in enumerate(wording.PHASE_HEADINGS)
            if console.width >= _WIDE or heading not in _PHASES_WITHOUT
        ]
        table = _table([wording.PHASE_HEADINGS[one] for one in shown], "l" + "r" * 7, [one[0] for one in phases])
        for cells in phases:
            table.add_row(*(_text(cells[one]) for one in shown))
        console.print(table)
        console.print(_text(wording.phase_caption(summary), "dim"))
    if summary.ranks:
        console.print()
        _print_ranks(console, summary)
    _print_ledgers(console, summary)
    print_warnings(console, run)
    console.print(
        _text(
            f"All {len(wording.figure_rows(summary))} figures, with how each was obtained: the Markdown report", "dim"
        )
    )


def _print_ledgers(console: Console, summary: Summary) -> None:
    """Print the ledger of every domain; reasons that several buckets share stand below all of them, once."""
    notes: dict[str, int] = {}
    narrow = console.width < _WIDE
    for sheet in summary.sheets:
        headings, rows = ledger_table.footnoted(sheet, notes, narrow)
        table = _table(headings, ledger_table.sides(headings), [row[0] for row in rows])
        for cells in rows:
            table.add_row(*map(_text, cells))
        console.print()
        console.print(_text(ledger_table.ledger_title(sheet, summary)))
        console.print(table)
        console.print(_text(ledger_table.ledger_caption(sheet, narrow), "dim"))
    if notes:
        console.print()
    for text, number in notes.items():
        console.print(_text(f"[{number}] {text}", "dim"))
    for line in ledger_table.provenance_key([summary]):
        console.print(_text(line, "dim"))
    for line in ledger_table.not_metered(summary):
        console.print(_text(line, "dim"))


def _print_ranks(console: Console, summary: Summary) -> None:
    """Print one column per rank, a few of them side by side at a time."""
    names, rows = wording.rank_headings(summary), wording.rank_rows(summary)
    for start in range(0, len(rows), _RANKS_BESIDE):
        beside = rows[start : start + _RANKS_BESIDE]
        table = _table((names[0], *(row[0] for row in beside)), "l" + "r" * len(beside), names)
        for number, name in enumerate(names[1:], start=1):
            table.add_row(_text(name), *(_text(row[number]) for row in beside))
        console.print(table)
    console.print(_text(wording.rank_caption(summary), "dim"))


def print_comparison(
    console: Console, labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]
) -> None:
    """Print one column per run, a few of them side by side at a time: what came out, then what was configured."""
    names, rows = wording.compared_headings(), wording.compared_rows(labels, runs, summaries)
    figures = [*equal_terms.size_rows(runs), *equal_terms.equal_rows(runs, summaries)]
    figures += energy_comparison.energy_rows(summaries)
    different = wording.differences(runs)
    at_once = max(1, min(_RUNS_BESIDE, (console.width - _KEY_WIDTH) // _RUN_WIDTH))
    for start in range(0, len(rows), at_once):
        beside = rows[start : start + at_once]
        table = _table(
            ("", *(row[0] for row in beside)), "l" + "r" * len(beside), [*names, *(row[0] for row in figures)]
        )
        table.add_row(names[1], *(_text(row[1], _STATUS_STYLE.get(row[1], "")) for row in beside))
        for number, name in enumerate(names[2:], start=2):
            table.add_row(name, *(_text(row[number]) for row in beside))
        for key, *values in figures:
            table.add_row(_text(key), *map(_text, values[start : start + at_once]))
        console.print(table)
        console.print()
    for line in [*wording.compared_reasons(summaries), *energy_comparison.verdicts(labels, summaries)]:
        console.print(_text(line, "dim"))
    for start in range(0, len(rows), at_once) if different else ():
        console.print()
        headings = ("Different configuration", *labels[start : start + at_once])
        table = _table(headings, "l" * len(headings), [row[0] for row in different])
        for key, *values in different:
            table.add_row(_text(key), *map(_text, values[start : start + at_once]))
        console.print(table)
    for run in runs:
        print_warnings(console, run)


def print_warnings(console: Console, run: Run) -> None:
    """Print what could not be read, and that the machine was busy."""
    for warning in (*run.warnings, *busy_lines(run)):
        console.print(_text(f"warning: {run.name}: {warning}", "yellow"))


def _text(text: str, style: str = "") -> Text:
    """Return text that a terminal shows as it is."""
    return Text(printable(text), style)


def _table(headings: Sequence[str], sides: str, keys: Iterable[str]) -> Table:
    """Return an empty table; the words of its first column, which will hold ``keys``, are not broken."""
    longest = max((len(word) for key in keys for word in key.split()), default=0)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, (heading, side) in enumerate(zip(headings, sides, strict=False)):
        table.add_column(
            _text(heading),
            justify="right" if side == "r" else "left",
            overflow="fold",
            min_width=min(longest, _KEY_WIDTH) if number == 0 else None,
        )
    return table
